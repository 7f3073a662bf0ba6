/* A cell of activations and convolutions alone, forward and backward: its layers one after the other in one call, so
 * that the caller describes it once. */

#include "layer.h"

#include <string.h>

/* Layers, one of which reads what the one before it writes; biases may be null. Of the gradients all are written. */
typedef struct {
    int64_t count;
    Layer layers[MOST_LAYERS];
    const float *weights[MOST_LAYERS], *biases[MOST_LAYERS];
    float *d_weights[MOST_LAYERS], *d_biases[MOST_LAYERS];
} Convolutions;

static int64_t floats_before(const Layer *layer) { return layer->batch * input_size(layer); }

/* y from x, with `base`, laid out as y, added unless it is null (to a dense layer only); unless y is null, which leaves
 * out the last layer. The maps between the layers are written into `maps`, one behind the other. */
void vaebench_convolutions(const Convolutions *cell, const float *x, const float *base, float *maps, float *y,
                           int32_t threads)
{
    for (int64_t i = 0; i < cell->count; i++) {
        int last = i + 1 == cell->count;
        float *to = last ? y : maps;
        if (!to) return;
        vaebench_layer(cell->layers[i], x, NULL, NULL, cell->weights[i], cell->biases[i], last ? base : NULL, to, NULL,
                       NULL, threads);
        x = to;
        if (!last) maps += floats_before(cell->layers + i + 1);
    }
}

/* Gradients of weights and biases, and d of x unless it is null, with `base`, laid out as x, added unless it is null
 * (where values are plain only); from the gradient of y. `room` holds twice the largest of the maps between layers. */
void vaebench_convolutions_backward(const Convolutions *cell, const float *x, const float *maps, const float *gradient,
                                    const float *base, float *room, float *d, int32_t threads)
{
    int64_t largest = 0;
    for (int64_t i = 1; i < cell->count; i++) {
        int64_t floats = floats_before(cell->layers + i);
        maps += floats;
        largest = floats > largest ? floats : largest;
    }
    for (int64_t i = cell->count; i-- > 0;) {
        const Layer *layer = cell->layers + i;
        Upstream upstream = {gradient, NULL, NULL, NULL, NULL, 0};
        if (i) maps -= floats_before(layer);
        float *to = i ? room + i % 2 * largest : d;
        if (cell->d_biases[i]) memset(cell->d_biases[i], 0, (size_t)layer->c_out * sizeof(float));
        vaebench_layer_backward(*layer, i ? maps : x, NULL, NULL, NULL, cell->weights[i], upstream, i ? NULL : base, to,
                                cell->d_weights[i], cell->d_biases[i], NULL, threads);
        gradient = to;
    }
}
