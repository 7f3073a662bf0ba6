/* What the C kernels of convolution cells share: vectors, scratch memory, activations, layers and what they read.
 *
 * Maps are (batch, height, width, channels), dense: channels-last tensors. products.c and depthwise.c convolve a few
 * maps that maps.c prepares; cells.c puts them together and shares the images out to threads. */

#ifndef VAEBENCH_CELLS_H
#define VAEBENCH_CELLS_H

#include "exp_log.h"

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

#define INLINE static inline __attribute__((always_inline))

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

/* Calls BODY(vectors, columns) for all channels from c = 0 on: four whole vectors at a time, one, or part of one. */
#define BY_CHUNKS(CHANNELS, BODY)                                                                                      \
    for (int64_t c = 0, left; (left = (CHANNELS) - c) > 0; c += left >= 4 * WIDE ? 4 * WIDE : WIDE) {                  \
        if (left >= 4 * WIDE) BODY(4, WIDE);                                                                           \
        else if (left >= WIDE) BODY(1, WIDE);                                                                          \
        else BODY(1, left);                                                                                            \
    }

/* A convolution over prepared maps: `pixel` floats from one pixel to the next, padding included in height and width.
 * Depthwise maps are in blocks of WIDE channels, (blocks, height, width, WIDE). */
typedef struct {
    int64_t height, width, channels, pixel, out_height, out_width;
    int32_t kernel, stride, dilation;
} Geometry;

enum { NONE, SWISH, ELU };

/* Maps (batch, height, width, c_in) to (batch, out_height, out_width, c_out); `repeat` 2 doubles height and width first. */
typedef struct {
    int64_t batch, height, width, c_in, c_out, out_height, out_width;
    int32_t kernel, stride, dilation, repeat, depthwise, activation;
} Layer;

/* The gradient of a layer's output: scale * gradient + output_scale * output + shift, with coefficients (batch, c) that
 * lie `per_image` apart (0: (c), the same for all images); a null `output` stands for zeros. */
typedef struct {
    const float *gradient, *output, *scale, *output_scale, *shift;
    int64_t per_image;
} Upstream;

/* Scratch memory of the calling thread, one piece per use; valid until the same use asks for more. */
enum { PACKED, START, MAP, PATCHES, SPREAD, INPUT_GRADIENT, WEIGHT_GRADIENT, SUMS, USES };

/* maps.c */
float *scratch(int use, int64_t floats);
int64_t padding(const Layer *of);
Geometry forward_geometry(const Layer *of);
Geometry backward_geometry(const Layer *of);
int64_t map_size(const Geometry *of);
void prepare(const Layer *of, const Geometry *g, const float *x, const float *scale, const float *shift, float *map);
void spread_gradient(const Layer *of, const Geometry *g, const Upstream *up, int64_t image, float *map, float *sum);
void normalised_gradient(const Layer *of, const float *x, const float *scale, const float *shift, const float *center,
                         const float *gradient, float *d, float *sum, float *product);
void image_statistics(const float *x, int64_t pixels, int64_t channels, float *mean, float *squares);
void linear_image(const Upstream *of, int64_t row, const float *base, float *out, int64_t pixels, int64_t channels);

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
