/* Dense convolutions of padded maps, and the gradients of their weights; see dense.c. */

#ifndef VAEBENCH_DENSE_H
#define VAEBENCH_DENSE_H

#include "layout.h"

/* Output pixels of a register tile; their sums, a panel wide, have to fit the registers (32, or 16 with AVX alone). */
#if defined(__AVX__) && !defined(__AVX512F__)
#define TILE 4
#else
#define TILE 8
#endif

#define MOST_TILES 2 /* that meet a narrow panel together, so that there are enough sums at a time */

/* Weights (c_out, c_in, kernel, kernel) as panels (kernel^2 c, panel). Backward: for the convolution of the
 * output's gradient that gives the input's, with c_in and c_out exchanged and the kernel turned. Shares panels out
 * to the threads of the parallel region that calls it. */
void pack_dense(const Layer *layer, const float *weight, int backward, float *packed);

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
