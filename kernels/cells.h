/* What the C kernels of convolution cells share: vectors, scratch memory, activations, layers and what they read.
 *
 * Maps are (batch, height, width, channels), dense: channels-last tensors. products.c and depthwise.c convolve a few
 * prepared maps; cells.c prepares them and shares the images out to threads. */

#ifndef VAEBENCH_CELLS_H
#define VAEBENCH_CELLS_H

#include "native.h"

#if defined(__AVX512F__)
#define WIDE 16 /* floats of a vector */
#define ROWS 8  /* rows of a register tile */
#elif defined(__AVX__)
#define WIDE 8
#define ROWS 4
#else
#define WIDE 4
#define ROWS 8
#endif
#define TAPS 169 /* most taps of a kernel: 13 x 13 */

typedef float vector __attribute__((vector_size(4 * WIDE)));
typedef int32_t int_vector __attribute__((vector_size(4 * WIDE)));
typedef float loose_vector __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));

static inline vector load(const float *at) { return (vector)*(const loose_vector *)at; }
static inline void store(float *at, vector value) { *(loose_vector *)at = (loose_vector)value; }
static inline int64_t rounded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

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

/* A convolution over prepared maps: `pixel` floats from one pixel to the next, padding included in height and width.
 * Depthwise maps are in blocks of WIDE channels, (blocks, height, width, WIDE). */
typedef struct {
    int64_t height, width, channels, pixel, out_height, out_width;
    int32_t kernel, stride, dilation;
} Geometry;

/* Scratch memory of the calling thread, one piece per use; valid until the same use asks for more. */
enum { PACKED, START, MAP, PATCHES, SPREAD, INPUT_GRADIENT, WEIGHT_GRADIENT, SUMS, USES };
float *scratch(int use, int64_t floats);

/* products.c */
int64_t panel_of(int64_t channels);
void pack_products(const float *weight, int64_t c_out, int64_t c_in, int kernel, int backward, float *packed);
void convolve(const Geometry *of, int64_t images, const float *map, const float *packed, const float *start, int64_t n,
              float *out);
void weight_gradient(const Geometry *of, int64_t images, const float *map, const Geometry *spread, const float *gradient,
                     float *out);

/* depthwise.c */
void convolve_depthwise(const Geometry *of, const float *map, const float *weight, const float *bias, float *out);
void weight_gradient_depthwise(const Geometry *of, const float *map, const Geometry *spread, const float *gradient,
                               float *out);

#endif
