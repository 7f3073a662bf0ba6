/* Activations and their slopes, a vector at a time. A new one: a name here and in `ACTIVATIONS` of kernels/cpu/cell.py
 * (with the same number), a line in `activated` and in `slope`, a case in BY_ACTIVATION. */

#ifndef VAEBENCH_ACTIVATION_H
#define VAEBENCH_ACTIVATION_H

#include "exp_log.h"
#include "vector.h"

enum { NONE, SWISH, ELU };

/* Calls BODY(activation) with a constant, so that each activation gets loops of its own. */
#define BY_ACTIVATION(ACTIVATION, BODY)                                                                                \
    switch (ACTIVATION) {                                                                                              \
    case SWISH: BODY(SWISH); break;                                                                                    \
    case ELU: BODY(ELU); break;                                                                                        \
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

INLINE vector activated(vector value, int activation)
{
    if (activation == SWISH) return value / (1.0f + exponentials(-value));
    if (activation == ELU) return choose(value > 0.0f, value, exponentials(value) - 1.0f);
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
    return (vector){0} + 1.0f;
}

#endif
