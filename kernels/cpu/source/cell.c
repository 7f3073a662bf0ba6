/* A whole residual cell without gradients, a few images at a time through all layers while they are in the cache:
 * out = [skip +] gain * gate * norm(branch(x)), the gate by squeeze-excitation (Hu et al. 2018). */

#include "gate.h"
#include "layer.h"
#include "linear_form.h"
#include "norm.h"
#include "scratch.h"

#include <string.h>

/* Layers with packed weights and start rows, norms (4, c) before each and after the last (null: none), weight and bias
 * of the two linear layers of the gate (none if `hidden`, the units between them, is 0), and the factor on the branch.
 */
typedef struct {
    int64_t count, hidden;
    float gain;
    Layer layers[MOST_LAYERS];
    const float *packed[MOST_LAYERS], *start[MOST_LAYERS], *norms[MOST_LAYERS + 1], *gate[4];
} Cell;

/* Packs a layer's weight and, as a row of whole panels, its bias (zeros if null). */
void vaebench_pack(Layer layer, const float *weight, const float *bias, float *packed, float *start)
{
    pack_weight(&layer, weight, 0, packed);
    if (bias) memcpy(start, bias, (size_t)layer.c_out * sizeof(float));
}

int64_t vaebench_packed_size(Layer layer) { return packed_size(&layer); }

/* gain * gate * norm as scale and shift (c) of one image's last map y. */
static void end_of_image(const Cell *cell, const float *y, int64_t pixels, int64_t channels, float *scale, float *shift)
{
    End end = {channels, cell->hidden, cell->gain, cell->norms[cell->count], cell->gate};
    float *mean = scratch(CELL_GATE, 2 * channels + cell->hidden), *gates = mean + channels;
    if (cell->hidden) image_statistics(y, pixels, channels, mean, gates); /* the squares are not needed */
    open_gate(&end, mean, gates + channels, gates, scale, shift);
}

/* What a layer reads and writes: from x or the layer before, to a half of `room`, in turns, or, of the last, to `out`.
 */
typedef struct {
    const Layer *layer;
    const float *x, *scale, *shift, *packed, *start, *base;
    float *y;
} Step;

/* Layer i, from x; the last one writes to `out`, and adds `skip`, unless these are null. */
static Step step_of(const Cell *cell, int64_t i, const float *x, float *room, int64_t half, const float *skip,
                    float *out)
{
    const Layer *layer = cell->layers + i;
    const float *norm = cell->norms[i], *scale = norm ? norm + NORM_SCALE * layer->c_in : NULL;
    int last = i + 1 == cell->count;
    float *y = last && out ? out : room + i % 2 * half;
    return (Step){layer, x, scale, norm ? norm + NORM_SHIFT * layer->c_in : NULL, cell->packed[i], cell->start[i],
                  last ? skip : NULL, y};
}

/* The last map of `images` images x, in `out`, and with `skip` added to it, unless these are null; maps take turns in
 * `room`, two halves of `half` floats. */
static const float *run_branch(const Cell *cell, int64_t images, const float *x, float *room, int64_t half,
                               const float *skip, float *out)
{
    for (int64_t i = 0; i < cell->count; i++) {
        Step s = step_of(cell, i, x, room, half, skip, out);
        run_layer(s.layer, images, s.x, s.scale, s.shift, s.packed, s.start, s.base, s.y);
        x = s.y;
    }
    return x;
}

/* Whether nothing but the sum stands behind the last convolution: no norm, gate or factor. */
static int ends_plainly(const Cell *cell)
{
    return !cell->norms[cell->count] && !cell->hidden && cell->gain == 1.0f && !cell->layers[cell->count - 1].depthwise;
}

/* Floats of the largest of the layers' outputs for one image. */
static int64_t largest_map(const Cell *cell)
{
    int64_t largest = 0;
    for (int64_t i = 0; i < cell->count; i++) {
        int64_t size = output_size(cell->layers + i);
        largest = size > largest ? size : largest;
    }
    return largest;
}

/* One image by all threads: the lines of each layer are shared out. */
static void run_shared(const Cell *cell, const float *x, const float *skip, float *out, int32_t threads)
{
    const Layer *last = cell->layers + cell->count - 1;
    int64_t channels = last->c_out, pixels = last->out_height * last->out_width, half = largest_map(cell), most = 0;
    for (int64_t i = 0; i < cell->count; i++) {
        int64_t floats = shared_floats(cell->layers + i);
        most = floats > most ? floats : most;
    }
    float *room = scratch(CELL_MAPS, 2 * half), *map = scratch(MAP, most), *scale = scratch(CELL_NORM, 2 * channels);
    int plain = ends_plainly(cell);
#pragma omp parallel num_threads(threads)
    {
        const float *from = x;
        for (int64_t i = 0; i < cell->count; i++) {
            Step s = step_of(cell, i, from, room, half, plain ? skip : NULL, plain ? out : NULL);
            share_layer(s.layer, s.x, s.scale, s.shift, s.packed, s.start, s.base, map, s.y);
            from = s.y;
        }
        if (!plain) {
#pragma omp single
            end_of_image(cell, from, pixels, channels, scale, scale + channels);
#pragma omp for schedule(static)
            for (int64_t row = 0; row < last->out_height; row++) {
                int64_t at = row * last->out_width * channels;
                Upstream branch = {from + at, NULL, scale, NULL, scale + channels, 0};
                linear_image(&branch, 0, skip ? skip + at : NULL, out + at, last->out_width, channels);
            }
        }
    }
}

/* out (batch, out_height, out_width, c_out) from x and skip (null: nothing is added). */
void vaebench_cell(const Cell *cell, const float *x, const float *skip, float *out, int32_t threads)
{
    const Layer *last = cell->layers + cell->count - 1;
    int64_t channels = last->c_out, pixels = last->out_height * last->out_width, size = output_size(last);
    int64_t in = input_size(cell->layers), at_once = images_at_once(last, threads), half = at_once * largest_map(cell);
    for (int64_t i = 0; i < last->batch && last->batch < threads; i++)
        run_shared(cell, x + i * in, skip ? skip + i * size : NULL, out + i * size, threads);
    if (last->batch < threads) return;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < last->batch; first += at_once) {
        int64_t images = last->batch - first < at_once ? last->batch - first : at_once;
        float *room = scratch(CELL_MAPS, 2 * half);
        if (ends_plainly(cell)) {
            run_branch(cell, images, x + first * in, room, half, skip ? skip + first * size : NULL, out + first * size);
            continue;
        }
        float *scale = scratch(CELL_NORM, 2 * channels), *shift = scale + channels;
        const float *y = run_branch(cell, images, x + first * in, room, half, NULL, NULL);
        for (int64_t i = first; i < first + images; i++, y += size) {
            end_of_image(cell, y, pixels, channels, scale, shift);
            Upstream branch = {y, NULL, scale, NULL, shift, 0};
            linear_image(&branch, 0, skip ? skip + i * size : NULL, out + i * size, pixels, channels);
        }
    }
}
