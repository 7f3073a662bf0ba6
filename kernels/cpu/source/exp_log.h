/* Exponential and logarithm in single precision, without branches or calls, so that compilers turn loops over them into
 * vector instructions. */

#ifndef VAEBENCH_EXP_LOG_H
#define VAEBENCH_EXP_LOG_H

#include <stdint.h>
#include <string.h>

#define LOG2_E 1.44269504088896341f
#define LN_2 0.693147180559945309f

static inline float as_float(int32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline int32_t as_int(float value) { int32_t bits; memcpy(&bits, &value, 4); return bits; }

#define TO_INTEGER 12582912.0f /* 1.5 2^23: to add it and take it away rounds to the nearest integer */

/* 2^f on [-1/2, 1/2], of a float or of a vector. */
#define EXP_TWO_OF_FRACTION(f)                                                                                         \
    ((((((1.5403530e-4f * (f) + 1.3333558e-3f) * (f) + 9.6181291e-3f) * (f) + 5.5504109e-2f) * (f) + 2.4022651e-1f)    \
          * (f) + 6.9314718e-1f) * (f) + 1.0f)

/* 2^x: the integer part goes into the exponent, the rest is a polynomial. */
static inline float exp_two(float x)
{
    x = x < -126.0f ? -126.0f : x; /* smallest and largest exponents of normal floats */
    x = x > 127.0f ? 127.0f : x;
    float whole = (x + TO_INTEGER) - TO_INTEGER, f = x - whole;
    return EXP_TWO_OF_FRACTION(f) * as_float(((int32_t)whole + 127) << 23);
}

static inline float exponential(float x) { return exp_two(x * LOG2_E); }

/* ln x of a positive normal x, by the series of 2 artanh((m - 1) / (m + 1)) for a mantissa m in [sqrt 1/2, sqrt 2). */
static inline float logarithm(float x)
{
    int32_t bits = as_int(x);
    int32_t exponent = (bits - 0x3f3504f3) >> 23; /* 0x3f3504f3 is sqrt 1/2 */
    float m = as_float(bits - (exponent << 23));
    float s = (m - 1.0f) / (m + 1.0f);
    float q = s * s;
    float series = ((q * 0.2222222f + 0.2857143f) * q + 0.4f) * q + 0.6666667f;
    float value = (float)exponent * LN_2 + (s * q * series + 2.0f * s);
    return x == x ? value : x;
}

#endif
