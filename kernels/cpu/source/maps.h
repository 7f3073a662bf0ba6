/* Padded maps: what a convolution reads, forward and backward, and what becomes of the gradient it writes. */

#ifndef VAEBENCH_MAPS_H
#define VAEBENCH_MAPS_H

#include "layout.h"
#include "linear_form.h"

/* One image x (height, width, c_in), normalised (scale, shift (c_in); null: not), activated, repeated, and padded with
 * zeros. */
void pad_input(const Layer *layer, const Geometry *g, const float *x, const float *scale, const float *shift,
               float *map);

/* The two steps of pad_input: zeros around the inside, and some lines of the image. */
void zero_border(const Layer *layer, const Geometry *g, float *map);
void pad_lines(const Layer *layer, const Geometry *g, int64_t first, int64_t lines, const float *x, const float *scale,
               const float *shift, float *map);

/* The gradient of one image's output as the backward convolution reads it, with zeros around it and, at stride 2,
 * between its pixels; adds its sum over pixels to `sum` (c_out). */
void spread_gradient(const Layer *layer, const Geometry *g, const Upstream *up, int64_t image, float *map, float *sum);

/* The gradient d (height, width, c_in) of one image's normalised input, from that of the activated and repeated
 * one; adds the sums over pixels of d and of d (x - center), (c_in) each, where there is a norm (scale not null). */
void normalised_gradient(const Layer *layer, const float *x, const float *scale, const float *shift,
                         const float *center, const float *gradient, float *d, float *sum, float *product);

/* Whether all values of a layer's input are alike: a dense layer without norm (scale is null) and repeated pixels. */
int plain_values(const Layer *layer, const float *scale);

/* Of plain values: `pad_input`, which leaves the slopes of the activation, laid out as x. */
void pad_input_with_slopes(const Layer *layer, const Geometry *g, const float *x, float *map, float *slopes);

/* Adds the sum over pixels of a map (pixels, channels). */
void sum_pixels(const float *map, int64_t pixels, int64_t channels, float *sum);

#endif
