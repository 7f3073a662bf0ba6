/* One layer of a cell over a few images; see layer.c. */

#ifndef VAEBENCH_LAYER_H
#define VAEBENCH_LAYER_H

#include "layout.h"

/* Images that a thread takes at a time. */
int64_t images_at_once(const Layer *layer, int64_t threads);

/* The layer's weights as its convolution reads them, packed_size floats; shared out to the threads that call it. */
void pack_weight(const Layer *layer, const float *weight, int backward, float *packed);

/* y of `images` images x, with the norm's scale and shift (c_in); the convolution's sums start from `start`, the bias
 * followed by zeros. `base`, laid out as y, is added unless it is null, to a dense layer only. */
void run_layer(const Layer *layer, int64_t images, const float *x, const float *scale, const float *shift,
               const float *packed, const float *start, const float *base, float *y);

#endif
