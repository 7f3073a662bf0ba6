/* Vectors of WIDE floats, through the vector extensions of GCC and Clang: + - * / and comparisons work lane by lane. */

#ifndef VAEBENCH_VECTOR_H
#define VAEBENCH_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDE 16
#elif defined(__AVX__)
#define WIDE 8
#else
#define WIDE 4 /* SSE2, NEON */
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * WIDE)));
typedef int32_t int_vector __attribute__((vector_size(4 * WIDE)));
typedef float loose_vector __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));

static inline vector load(const float *at) { return (vector)*(const loose_vector *)at; }
static inline void store(float *at, vector value) { *(loose_vector *)at = (loose_vector)value; }

/* The first n floats, and zeros after them. */
static inline vector load_some(const float *at, int64_t n)
{
    if (n >= WIDE) return load(at);
    vector value = {0};
    memcpy(&value, at, (size_t)n * sizeof(float));
    return value;
}

static inline void store_some(float *at, vector value, int64_t n)
{
    if (n >= WIDE) store(at, value);
    else memcpy(at, &value, (size_t)n * sizeof(float));
}

#define CHUNK 4 /* most vectors of channels that a pass over a map takes at a time */

/* Calls BODY(vectors, columns) for all channels from c = 0 on: CHUNK whole vectors at a time, one, or `columns`
 * floats of one. BODY calls an INLINE function, which so becomes a loop of its own for each of the three. */
#define BY_CHUNKS(CHANNELS, BODY)                                                                                      \
    for (int64_t c = 0, left; (left = (CHANNELS) - c) > 0; c += left >= CHUNK * WIDE ? CHUNK * WIDE : WIDE) {          \
        if (left >= CHUNK * WIDE) BODY(CHUNK, WIDE);                                                                   \
        else if (left >= WIDE) BODY(1, WIDE);                                                                          \
        else BODY(1, left);                                                                                            \
    }

#endif
