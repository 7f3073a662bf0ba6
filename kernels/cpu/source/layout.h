/* How layers, maps and packed weights lie in memory. */

#ifndef VAEBENCH_LAYOUT_H
#define VAEBENCH_LAYOUT_H

#include <stdint.h>

/* From (batch, height, width, c_in) to (batch, out_height, out_width, c_out); with `repeat` 2 each pixel is first
 * written twice in both directions. */
typedef struct {
    int64_t batch, height, width, c_in, c_out, out_height, out_width;
    int32_t kernel, stride, dilation, repeat, depthwise, activation;
} Layer;

/* A convolution over padded maps: `pixel` floats from one pixel to the next, padding included in height and width.
 * Dense maps are (height, width, pixel), depthwise ones in blocks of WIDE channels, (blocks, height, width, WIDE). */
typedef struct {
    int64_t height, width, channels, pixel, out_height, out_width;
    int32_t kernel, stride, dilation;
} Geometry;

static inline int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }
static inline int64_t taps_of(const Layer *layer) { return (int64_t)layer->kernel * layer->kernel; }

/* Floats of one image before and after the layer. */
static inline int64_t input_size(const Layer *layer) { return layer->height * layer->width * layer->c_in; }
static inline int64_t output_size(const Layer *layer) { return layer->out_height * layer->out_width * layer->c_out; }

/* What the layer's convolution reads. */
Geometry forward_geometry(const Layer *layer);

/* What the convolution reads that turns the output's gradient, spread by the stride, into the input's. */
Geometry backward_geometry(const Layer *layer);

/* Floats of one padded map, all blocks of a depthwise one. */
int64_t map_size(const Geometry *g);

/* Where the first pixel inside the padding lies in a padded map of the layer. */
int64_t first_inside(const Layer *layer, const Geometry *g);

/* Distance of two neighbouring vectors of channels in a padded map: another block, or the same pixel. */
int64_t vector_step(const Layer *layer, const Geometry *g);

/* Floats of a panel of output channels: three, two or one vectors. */
int64_t panel_width(int64_t channels);

/* Floats of the layer's weights, packed for the forward or the backward convolution, whichever needs more. */
int64_t packed_size(const Layer *layer);

#endif
