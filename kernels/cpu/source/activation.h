/* Activations and their slopes, a vector at a time. A new one: a name here and in `ACTIVATIONS` of kernels/cpu/cell.py
 * (with the same number), a line in `activated` and in `slope`, a case in BY_ACTIVATION. */

#ifndef VAEBENCH_ACTIVATION_H
#define VAEBENCH_ACTIVATION_H

#include "exp_log.h"
#include "vector.h"

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

INLINE vector exponentials(vector x)
{
    float value[WIDE];
    store(value, x);
    for (int i = 0; i < WIDE; i++) value[i] = exponential(value[i]);
    return load(value);
}

/* Density of the standard normal without its factor 1 / sqrt(2 pi). */
INLINE vector bell(vector x) { return exponentials(-0.5f * x * x); }

/* Distribution function of the standard normal, from its bell: Abramowitz & Stegun 26.2.17 as 7.1.26, off by 1e-7. */
INLINE vector below(vector x, vector bell)
{
    vector size = choose(x > 0.0f, x, -x);
    vector t = 1.0f / (1.0f + 0.23164189f * size); /* 0.3275911 / sqrt 2 */
    vector p = t * 0.53070271f - 0.72657603f;
    p = p * t + 0.71070687f;
    p = p * t - 0.14224837f;
    p = p * t + 0.12741480f;
    vector tail = p * t * bell;
    return choose(x > 0.0f, 1.0f - tail, tail);
}

INLINE vector activated(vector value, int activation)
{
    if (activation == SWISH) return value / (1.0f + exponentials(-value));
    if (activation == ELU) return choose(value > 0.0f, value, exponentials(value) - 1.0f);
    if (activation == GELU) return value * below(value, bell(value));
    return value;
}

/* Derivative of the activation at `value`. */
INLINE vector slope(vector value, int activation)
{
    if (activation == SWISH) {
        vector sigmoid = 1.0f / (1.0f + exponentials(-value));
        return sigmoid * (1.0f + value * (1.0f - sigmoid));
    }
    if (activation == ELU) return choose(value > 0.0f, (vector){0} + 1.0f, exponentials(value));
    if (activation == GELU) {
        vector density = bell(value);
        return below(value, density) + value * density * 0.39894228f; /* 1 / sqrt(2 pi) */
    }
    return (vector){0} + 1.0f;
}

#endif
