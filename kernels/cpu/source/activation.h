/* Activations and their slopes, a vector at a time. A new one: a name here and in `ACTIVATIONS` of
 * kernels/cpu/cells/layer.py (with the same number), a line in `activated` and in `slope`, a case in BY_ACTIVATION. */

#ifndef VAEBENCH_ACTIVATION_H
#define VAEBENCH_ACTIVATION_H

#include "exp_log.h"
#include "vector.h"

#include <stddef.h>

enum { NONE, SWISH, ELU, GELU };

/* Calls BODY(activation) with a constant, so that each activation gets loops of its own. */
#define BY_ACTIVATION(ACTIVATION, BODY)                                                                                \
    switch (ACTIVATION) {                                                                                              \
    case SWISH: BODY(SWISH); break;                                                                                    \
    case ELU: BODY(ELU); break;                                                                                        \
    case GELU: BODY(GELU); break;                                                                                      \
    default: BODY(NONE);                                                                                               \
    }

INLINE vector choose(int_vector mask, vector yes, vector no)
{
    return (vector)((mask & (int_vector)yes) | (~mask & (int_vector)no));
}

/* The value between two bounds; NaN stays NaN. */
INLINE vector between(vector low, vector value, vector high)
{
#if defined(__AVX512F__)
    return (vector)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)value));
#elif defined(__AVX__)
    return (vector)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)value));
#else
    return choose(value > high, high, choose(value < low, low, value));
#endif
}

/* `exponential` lane by lane, bit for bit: compilers make no vectors of 8 or 4 of its loops by themselves. */
INLINE vector exponentials(vector x)
{
    vector all = {0};
    x = between(all - 126.0f, x * LOG2_E, all + 127.0f);
    vector whole = (x + TO_INTEGER) - TO_INTEGER, f = x - whole;
    return EXP_TWO_OF_FRACTION(f) * (vector)((__builtin_convertvector(whole, int_vector) + 127) << 23);
}

/* 1 / x for normal x: an approximation by the processor, made exact to single precision by a step of Newton's, where a
 * division takes twice as long as an exponential. */
INLINE vector inverse(vector x)
{
#if defined(__AVX512F__)
    vector guess = (vector)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

/* GELU is value * Phi(value), Phi the distribution function of the standard normal, and its slope is Phi + value * phi.
 * Both less 1/2 are odd functions: value * polynomial / polynomial in its square, the latter polynomial shared; fitted
 * by least squares, reweighted towards the largest error, which is 1e-8 up to GELU_END. */
#define GELU_END 5.5f /* behind it both are 0 or 1 to single precision */

INLINE vector gelu_denominator(vector t)
{
    vector q = t * 6.72215563e-8f + 4.92825347e-6f;
    q = q * t + 1.47346684e-4f;
    q = q * t + 2.85931514e-3f;
    q = q * t + 3.62610854e-2f;
    q = q * t + 2.78903484e-1f;
    return q * t + 1.0f;
}

INLINE vector gelu_phi_numerator(vector t)
{
    vector p = t * -3.14072509e-12f + 1.76494985e-9f;
    p = p * t + 3.38949235e-7f;
    p = p * t + 1.47400378e-5f;
    p = p * t + 3.23721906e-4f;
    p = p * t + 5.89564536e-3f;
    p = p * t + 4.47757356e-2f;
    return p * t + 3.98942351e-1f;
}

INLINE vector gelu_slope_numerator(vector t)
{
    vector p = t * -2.89662547e-11f + 6.50883436e-9f;
    p = p * t - 4.24312141e-8f;
    p = p * t + 3.221308e-5f;
    p = p * t - 1.71157357e-4f;
    p = p * t + 1.45954965e-2f;
    p = p * t - 4.34284247e-2f;
    return p * t + 7.97884524e-1f;
}

/* 1/2 + an odd part; nothing where the value lies before all of it. */
INLINE vector from_odd(vector value, vector odd) { return choose(value > -GELU_END, 0.5f + odd, (vector){0}); }

INLINE vector gelu(vector value, vector *slope)
{
    vector end = (vector){0} + GELU_END, x = between(-end, value, end), t = x * x;
    vector scaled = x * inverse(gelu_denominator(t));
    if (slope) *slope = from_odd(value, scaled * gelu_slope_numerator(t));
    return value * from_odd(value, scaled * gelu_phi_numerator(t));
}

INLINE vector activated(vector value, int activation)
{
    if (activation == SWISH) return value * inverse(1.0f + exponentials(-value));
    if (activation == ELU) return choose(value > 0.0f, value, exponentials(value) - 1.0f);
    if (activation == GELU) return gelu(value, NULL);
    return value;
}

/* Derivative of the activation at `value`. */
INLINE vector slope(vector value, int activation)
{
    if (activation == SWISH) {
        vector sigmoid = inverse(1.0f + exponentials(-value));
        return sigmoid * (1.0f + value * (1.0f - sigmoid));
    }
    if (activation == ELU) return choose(value > 0.0f, (vector){0} + 1.0f, exponentials(value));
    if (activation == GELU) {
        vector derivative;
        gelu(value, &derivative);
        return derivative;
    }
    return (vector){0} + 1.0f;
}

/* Both; what they share is worked out once where it costs most. */
INLINE vector activated_and_slope(vector value, int activation, vector *derivative)
{
    if (activation == GELU) return gelu(value, derivative);
    *derivative = slope(value, activation);
    return activated(value, activation);
}

#endif
