/* Vectors of WIDE floats, through the vector extensions of GCC and Clang: + - * / and comparisons work lane by lane. */

#ifndef VAEBENCH_VECTOR_H
#define VAEBENCH_VECTOR_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

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

#if defined(__AVX512F__)
INLINE __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
INLINE vector load_first(const float *at, int64_t n) { return (vector)_mm512_maskz_loadu_ps(first_lanes(n), at); }
INLINE void store_first(float *at, vector v, int64_t n) { _mm512_mask_storeu_ps(at, first_lanes(n), (__m512)v); }
#elif defined(__AVX__)
INLINE __m256i first_lanes(int64_t n) { return (__m256i)((int_vector){0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)n); }
INLINE vector load_first(const float *at, int64_t n) { return (vector)_mm256_maskload_ps(at, first_lanes(n)); }
INLINE void store_first(float *at, vector value, int64_t n) { _mm256_maskstore_ps(at, first_lanes(n), (__m256)value); }
#else
INLINE vector load_first(const float *at, int64_t n)
{
    vector value = {0};
    memcpy(&value, at, (size_t)n * sizeof(float));
    return value;
}
INLINE void store_first(float *at, vector value, int64_t n) { memcpy(at, &value, (size_t)n * sizeof(float)); }
#endif

/* Reads on so that a value is in the cache when its pixel's turn comes. A pass that takes a few channels of every pixel
 * jumps, and processors do not foresee it. */
#define AHEAD 8 /* pixels */
INLINE void fetch(const float *at) { __builtin_prefetch(at); }

/* The first n floats, and zeros after them; memory behind them is neither read nor written. */
INLINE vector load_some(const float *at, int64_t n) { return n >= WIDE ? load(at) : load_first(at, n); }

INLINE void store_some(float *at, vector value, int64_t n)
{
    if (n >= WIDE) store(at, value);
    else store_first(at, value, n);
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
