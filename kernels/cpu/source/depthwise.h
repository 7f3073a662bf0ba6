/* Depthwise convolutions of padded maps, and the gradients of their weights; see depthwise.c. */

#ifndef VAEBENCH_DEPTHWISE_H
#define VAEBENCH_DEPTHWISE_H

#include "layout.h"

/* Weights (channels, kernel^2) as (blocks, kernel^2, WIDE), turned for the backward convolution. Shares blocks out
 * to the threads of the parallel region that calls it. */
void pack_depthwise(const Layer *layer, const float *weight, int backward, float *packed);

/* out (pixels, channels) = bias + convolution of one map with packed weights; `bias` has room for whole blocks. */
void convolve_depthwise(const Geometry *g, const float *map, const float *packed, const float *bias, float *out);

/* out (blocks, kernel^2, WIDE) += gradient of the weights, from one map and the spread gradient of its output: the
 * gradient of pixel (y, x) lies at (y, x) times the stride, counted from `gradient` on. */
void weight_gradient_depthwise(const Geometry *g, const float *map, const Geometry *spread, const float *gradient,
                               float *out);

#endif
