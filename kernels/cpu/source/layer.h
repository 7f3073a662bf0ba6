/* One layer of a cell, over a batch or over a few images; see layer.c. */

#ifndef VAEBENCH_LAYER_H
#define VAEBENCH_LAYER_H

#include "layout.h"
#include "linear_form.h"

#define MOST_LAYERS 8 /* of a cell that is described as a whole */

/* Images that a thread takes at a time. */
int64_t images_at_once(const Layer *layer, int64_t threads);

/* The layer's weights as its convolution reads them, packed_size floats; shared out to the threads that call it. */
void pack_weight(const Layer *layer, const float *weight, int backward, float *packed);

/* y of `images` images x, with the norm's scale and shift (c_in); the convolution's sums start from `start`, the bias
 * followed by zeros. `base`, laid out as y, is added unless it is null, to a dense layer only. */
void run_layer(const Layer *layer, int64_t images, const float *x, const float *scale, const float *shift,
               const float *packed, const float *start, const float *base, float *y);

/* The same of one image, whose lines are shared out to the threads that call it; `map` is memory of all, shared_floats.
 */
void share_layer(const Layer *layer, const float *x, const float *scale, const float *shift, const float *packed,
                 const float *start, const float *base, float *map, float *y);
int64_t shared_floats(const Layer *layer);

/* A batch forward and backward. */
void layer_forward(Layer layer, const float *x, const float *scale, const float *shift, const float *weight,
                    const float *bias, const float *base, float *y, float *mean, float *squares, int32_t threads);
void layer_backward(Layer layer, const float *x, const float *scale, const float *shift, const float *center,
                             const float *weight, Upstream upstream, const float *base, float *d, float *d_weight,
                             float *d_bias, double *sums, int32_t threads);

#endif
