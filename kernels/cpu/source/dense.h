/* Dense convolutions of padded maps, and the gradients of their weights; see dense.c. */

#ifndef VAEBENCH_DENSE_H
#define VAEBENCH_DENSE_H

#include "layout.h"

/* Neighbouring output pixels of a tile. A panel of one, two or three vectors meets as many tiles at a time as leave
 * each sum a register, of 32 or of 16: one vector 16 or 12 pixels, two 12 or 6, three 8 or 4. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE 4
#define TILES_OF_ONE 4
#else
#define TILE 2
#define TILES_OF_ONE 6
#endif
#define TILES_OF_TWO 3
#define TILES_OF_THREE 2
#define MOST_TILES TILES_OF_ONE

/* Weights (c_out, c_in, kernel, kernel) as panels (kernel^2 c, panel). Backward: for the convolution of the
 * output's gradient that gives the input's, with c_in and c_out exchanged and the kernel turned. Shares panels out
 * to the threads of the parallel region that calls it. */
void pack_dense(const Layer *layer, const float *weight, int backward, float *packed);

/* Weights (columns, depth, taps) of up to WIDE outputs from the sum of `count` parts (taps depth, WIDE), whose rows lie
 * `row` floats apart. */
void unpack_weights(int64_t taps, int64_t depth, int64_t columns, const float *const *parts, int64_t count, int64_t row,
                  float *weight);

/* What becomes of a convolution's sums before they are written: [times factor] [+ base], both laid out as the output;
 * null: nothing. */
typedef struct {
    const float *factor, *base;
} Epilogue;

/* out (pixels of all maps, n) = start + convolution of `images` maps with packed weights, and its
 * `epilogue`; `start` has room for whole panels. Up to MOST_TILES * TILE pixels after the last map are read and thrown
 * away. */
void convolve_dense(const Geometry *g, int64_t images, const float *map, const float *packed, const float *start,
                    const Epilogue *epilogue, int64_t n, float *out);

/* out (kernel^2 channels, spread pixel) += gradient of the weights. The gradient of output pixel (y, x) lies at (y, x)
 * times the stride in the spread maps, counted from `gradient` on; their pixels are whole panels. */
void weight_gradient_dense(const Geometry *g, int64_t images, const float *map, const Geometry *spread,
                           const float *gradient, float *out);

#endif
