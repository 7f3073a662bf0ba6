/* A whole residual cell with gradients: out = [skip +] gain * gate * norm(branch(x)), the branch being [norm,]
 * activation, convolution, ... One call in either direction, so that the caller describes a cell once.
 *
 * Only the cell's input and its layers' outputs are kept for the way back (and a few numbers an image): a layer works
 * out again what it read (layer.c). */

#include "gate.h"
#include "layer.h"
#include "linear_form.h"
#include "maps.h"
#include "norm.h"
#include "scratch.h"

#include <string.h>

#define MOST_NORMS (MOST_LAYERS + 1)
#define MOST_TENSORS (2 * MOST_NORMS + 2 * MOST_LAYERS + 4)

/* Tensors and their gradients: weight and bias of the norm before each layer and of that after the last (null where
 * `normed` is 0), weight and bias (may be null) of each convolution, and the gate's four (none if `hidden`, its units,
 * is 0). Of the norms running mean and variance, epsilon, momentum, and how often a pixel counts (see norm.c). */
typedef struct {
    int64_t count, hidden;
    float gain;
    int32_t normed[MOST_NORMS];
    Layer layers[MOST_LAYERS];
    double constants[3 * MOST_NORMS];
    float *running[2 * MOST_NORMS], *tensors[MOST_TENSORS], *gradients[MOST_TENSORS];
} TrainableCell;

/* Where the tensors of a norm, of a convolution and of the gate stand among all. */
static int64_t of_norm(int64_t i) { return 2 * i; }
static int64_t of_layer(const TrainableCell *cell, int64_t i) { return 2 * (cell->count + 1 + i); }
static int64_t of_gate(const TrainableCell *cell) { return of_layer(cell, cell->count); }

static const Layer *last_layer(const TrainableCell *cell) { return cell->layers + cell->count - 1; }

/* Channels and pixels of the map that norm i reads. */
static int64_t channels_of(const TrainableCell *cell, int64_t i)
{
    return i < cell->count ? cell->layers[i].c_in : last_layer(cell)->c_out;
}
static int64_t pixels_of(const TrainableCell *cell, int64_t i)
{
    const Layer *layer = i < cell->count ? cell->layers + i : last_layer(cell);
    return i < cell->count ? layer->height * layer->width : layer->out_height * layer->out_width;
}

static int64_t most_channels(const TrainableCell *cell)
{
    int64_t most = 0;
    for (int64_t i = 0; i <= cell->count; i++) most = channels_of(cell, i) > most ? channels_of(cell, i) : most;
    return most;
}

/* Whether nothing but the factor stands between the last convolution and the sum. */
static int ends_plainly(const TrainableCell *cell) { return !cell->normed[cell->count] && !cell->hidden; }

/* Whether the last convolution itself adds its sums to what the cell adds them to. */
static int adds_in_place(const TrainableCell *cell)
{
    return ends_plainly(cell) && cell->gain == 1.0f && !last_layer(cell)->depthwise;
}

/* What a pass leaves: maps[i], the output of layer i (of the last only unless the cell ends plainly); norms[i] (4, c)
 * where there is one; with a gate, of each image the mean of the last map over pixels, hidden units and gates. */
typedef struct {
    float *maps[MOST_LAYERS], *norms[MOST_NORMS], *mean, *units, *gates;
} Kept;

/* The next `floats` of a piece of memory, of which so many are `used`; null of none. */
static float *take(float *from, int64_t *used, int64_t floats)
{
    float *at = from ? from + *used : NULL;
    *used += floats;
    return at;
}

static Kept kept_of(const TrainableCell *cell, float *from, int64_t *floats)
{
    int64_t batch = last_layer(cell)->batch, channels = last_layer(cell)->c_out;
    Kept kept = {{0}, {0}, NULL, NULL, NULL};
    *floats = 0;
    for (int64_t i = 0; i < cell->count - ends_plainly(cell); i++)
        kept.maps[i] = take(from, floats, batch * output_size(cell->layers + i));
    for (int64_t i = 0; i <= cell->count; i++)
        if (cell->normed[i]) kept.norms[i] = take(from, floats, 4 * channels_of(cell, i));
    if (!cell->hidden) return kept;
    kept.mean = take(from, floats, batch * channels);
    kept.units = take(from, floats, batch * cell->hidden);
    kept.gates = take(from, floats, batch * channels);
    return kept;
}

/* Floats that a pass leaves. */
int64_t vaebench_kept_floats(const TrainableCell *cell)
{
    int64_t floats;
    kept_of(cell, NULL, &floats);
    return floats;
}

/* Floats of the largest map between two layers. */
static int64_t largest_between(const TrainableCell *cell)
{
    int64_t largest = 0;
    for (int64_t i = 0; i + 1 < cell->count; i++) {
        int64_t floats = cell->layers[i].batch * output_size(cell->layers + i);
        largest = floats > largest ? floats : largest;
    }
    return largest;
}

static End end_of(const TrainableCell *cell, const Kept *kept)
{
    return (End){last_layer(cell)->c_out, cell->hidden, cell->gain, kept->norms[cell->count],
                 (const float *const *)cell->tensors + of_gate(cell)};
}

/* A row of an applied norm; null without. */
static const float *row_of(const Kept *kept, const TrainableCell *cell, int64_t i, int row)
{
    return kept->norms[i] ? kept->norms[i] + row * channels_of(cell, i) : NULL;
}

/* Norm i as scale and shift, from the images' statistics or, of a null mean, the running ones. */
static void apply_norm(const TrainableCell *cell, int64_t i, const float *mean, const float *squares, int update,
                       float *out)
{
    float *const *tensors = cell->tensors + of_norm(i), *const *running = cell->running + 2 * i;
    const double *constants = cell->constants + 3 * i;
    if (!cell->normed[i]) return;
    int moves = update || !mean;
    vaebench_norm(mean, squares, last_layer(cell)->batch, pixels_of(cell, i), channels_of(cell, i), tensors[0],
                  tensors[1], constants[0], constants[1], constants[2], moves ? running[0] : NULL,
                  moves ? running[1] : NULL, out);
}

/* The gate of each image and, unless null, out = [skip +] gain * gate * norm of the last map. */
static void combine(const TrainableCell *cell, const Kept *kept, const float *map, const float *skip, float *out,
                    int32_t threads)
{
    End end = end_of(cell, kept);
    int64_t size = output_size(last_layer(cell)), channels = end.channels, hidden = end.hidden;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < last_layer(cell)->batch; i++) {
        float *scale = scratch(CELL_NORM, 2 * channels), *shift = scale + channels;
        if (hidden)
            open_gate(&end, kept->mean + i * channels, kept->units + i * hidden, kept->gates + i * channels, scale,
                      shift);
        else open_gate(&end, NULL, NULL, NULL, scale, shift);
        Upstream branch = {map + i * size, NULL, scale, NULL, shift, 0};
        if (out) linear_image(&branch, 0, skip ? skip + i * size : NULL, out + i * size, size / channels, channels);
    }
}

/* out (unless null: then only what the way back needs is worked out) from x, with `skip`, laid out as out, added unless
 * it is null. Norms are of the batch or, unless `of_batch`, of the running statistics, which `update` moves. `kept` has
 * room for vaebench_kept_floats; null: there is no way back, or it works them out again. */
void vaebench_trainable_cell(const TrainableCell *cell, const float *x, const float *skip, float *kept, float *out,
                             int32_t of_batch, int32_t update, int32_t threads)
{
    int64_t batch = last_layer(cell)->batch, most = most_channels(cell), floats = vaebench_kept_floats(cell);
    Kept left = kept_of(cell, kept ? kept : scratch(CELL_KEPT, floats), &floats);
    float *mean = scratch(IMAGE_STATISTICS, 2 * batch * most), *squares = mean + batch * most;
    if (of_batch && cell->normed[0])
        batch_statistics(x, mean, squares, batch, pixels_of(cell, 0), channels_of(cell, 0), threads);
    for (int64_t i = 0; i < cell->count; i++) {
        int last = i + 1 == cell->count;
        float *y = last && ends_plainly(cell) ? out : left.maps[i], *const *tensors = cell->tensors + of_layer(cell, i);
        if (!y) return;
        apply_norm(cell, i, of_batch ? mean : NULL, squares, update, left.norms[i]);
        if (last && cell->hidden) mean = left.mean;
        int wanted = (of_batch && cell->normed[i + 1]) || (last && cell->hidden);
        layer_forward(cell->layers[i], x, row_of(&left, cell, i, NORM_SCALE), row_of(&left, cell, i, NORM_SHIFT),
                      tensors[0], tensors[1], last && adds_in_place(cell) ? skip : NULL, y, wanted ? mean : NULL,
                      squares, threads);
        x = y;
    }
    apply_norm(cell, cell->count, of_batch ? mean : NULL, squares, update, left.norms[cell->count]);
    if (cell->hidden || (out && !adds_in_place(cell))) combine(cell, &left, x, skip, out, threads);
}

/* Memory of the way back through the end of a cell: sums (2, c) of a norm, of each image those of gradient and of its
 * product with map - mean, gradients of the gate, and the linear form. */
typedef struct {
    double *over_batch;
    float *sums, *products, *d_logits, *d_units, *scale, *output_scale, *shift, *through;
} EndRoom;

static EndRoom end_room(int64_t batch, int64_t channels, int64_t hidden)
{
    int64_t each = batch * channels, used = 4 * channels; /* a double is two floats */
    float *from = scratch(CELL_END, used + 6 * each + batch * hidden + 3 * channels);
    EndRoom room = {(double *)from, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL};
    room.sums = take(from, &used, each), room.products = take(from, &used, each);
    room.d_logits = take(from, &used, each), room.d_units = take(from, &used, batch * hidden);
    room.scale = take(from, &used, each), room.output_scale = take(from, &used, each);
    room.shift = take(from, &used, each), room.through = take(from, &used, 3 * channels);
    return room;
}

/* Sums over the batch of the normed map's gradient, scale * gradient + shift, and of its product with map - mean, from
 * those of the images. Without a gate all images share `scale`, and there is no shift. */
static void sum_over_batch(const End *end, const Kept *kept, const EndRoom *room, int64_t batch, int64_t pixels)
{
    int64_t channels = end->channels;
    double *total = room->over_batch, *product = total + channels;
    const float *center = end->norm + NORM_MEAN * channels;
    memset(total, 0, (size_t)(2 * channels) * sizeof(double));
    for (int64_t i = 0; i < batch; i++) {
        const float *sums = room->sums + i * channels, *products = room->products + i * channels;
        for (int64_t c = 0; c < channels; c++) {
            double scale = room->scale[end->hidden ? i * channels + c : c];
            double shift = end->hidden ? (double)room->shift[i * channels + c] * (double)pixels : 0;
            total[c] += scale * sums[c] + shift;
            product[c] += scale * products[c];
            if (end->hidden) product[c] += (kept->mean[i * channels + c] - center[c]) * shift;
        }
    }
}

/* Back through factor, gate and last norm, whose tensors' gradients are written: the gradient of the last map as a
 * linear form of the cell's gradient and that map. */
static Upstream end_gradient(const TrainableCell *cell, const Kept *kept, const float *gradient, int32_t threads)
{
    const Layer *last = last_layer(cell);
    int64_t batch = last->batch, size = output_size(last), channels = last->c_out, hidden = cell->hidden;
    int64_t pixels = size / channels, images = hidden ? batch : 1;
    const float *map = kept->maps[cell->count - 1], *center = row_of(kept, cell, cell->count, NORM_MEAN);
    float *const *d_gate = cell->gradients + of_gate(cell), *const *d_norm = cell->gradients + of_norm(cell->count);
    End end = end_of(cell, kept);
    EndRoom room = end_room(batch, channels, hidden);
    for (int64_t c = 0; c < channels; c++) room.scale[c] = cell->gain;
    if (ends_plainly(cell)) return (Upstream){gradient, NULL, cell->gain == 1.0f ? NULL : room.scale, NULL, NULL, 0};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < batch; i++) {
        int64_t at = i * channels;
        gradient_sums(gradient + i * size, map + i * size, center, pixels, channels, room.sums + at,
                      room.products + at);
        if (hidden)
            gate_gradient(&end, kept->units + i * hidden, kept->gates + at, room.sums + at, room.products + at, pixels,
                          room.d_logits + at, room.d_units + i * hidden, room.scale + at, room.shift + at);
    }
    int64_t sizes[] = {hidden * channels, hidden, channels * hidden, channels};
    for (int k = 0; k < 4 && hidden; k++) memset(d_gate[k], 0, (size_t)sizes[k] * sizeof(float));
    for (int64_t i = 0; i < batch && hidden; i++)
        add_gate_gradients(&end, kept->mean + i * channels, kept->units + i * hidden, room.d_logits + i * channels,
                           room.d_units + i * hidden, room.through, d_gate);
    Upstream form = {gradient, NULL, room.scale, NULL, hidden ? room.shift : NULL, hidden ? channels : 0};
    if (!end.norm) return form;
    sum_over_batch(&end, kept, &room, batch, pixels);
    norm_gradient(end.norm, room.over_batch, (double)(batch * pixels), channels, d_norm[0], d_norm[1], room.through);
    for (int64_t at = 0; at < images * channels; at++) {
        const float *through = room.through + at % channels; /* (3, channels) */
        room.shift[at] = through[2 * channels] + (hidden ? room.shift[at] * through[0] : 0.0f);
        room.output_scale[at] = through[channels];
        room.scale[at] *= through[0];
    }
    form.output = map, form.output_scale = room.output_scale, form.shift = room.shift;
    return form;
}

/* Gradients of all tensors, and d of x (null: not wanted, of a cell whose first layer has no norm), with `base`, laid
 * out as x, added unless it is null; from that of out and from what the way here kept (null: it is worked out again).
 */
void vaebench_trainable_cell_backward(const TrainableCell *cell, const float *x, const float *kept,
                                      const float *gradient, const float *base, float *d, int32_t threads)
{
    int64_t most = most_channels(cell), half = largest_between(cell), floats = vaebench_kept_floats(cell);
    float *room = scratch(CELL_ROOM, 2 * half);
    Kept left = kept_of(cell, kept ? (float *)kept : scratch(CELL_KEPT, floats), &floats);
    if (!kept) vaebench_trainable_cell(cell, x, NULL, NULL, NULL, 1, 0, threads);
    Upstream upstream = end_gradient(cell, &left, gradient, threads);
    double *sums = (double *)scratch(CELL_SUMS, 7 * most); /* (2, c) doubles, and (3, c) floats behind them */
    float *coefficients = (float *)(sums + 2 * most);
    for (int64_t i = cell->count; i-- > 0;) {
        const Layer *layer = cell->layers + i;
        float *const *tensors = cell->tensors + of_layer(cell, i), *const *to = cell->gradients + of_layer(cell, i);
        const float *input = i ? left.maps[i - 1] : x;
        float *d_input = i ? room + i % 2 * half : d;
        int adds = !i && plain_values(layer, left.norms[0]);
        if (to[1]) memset(to[1], 0, (size_t)layer->c_out * sizeof(float));
        memset(sums, 0, (size_t)(2 * layer->c_in) * sizeof(double));
        layer_backward(*layer, input, row_of(&left, cell, i, NORM_SCALE), row_of(&left, cell, i, NORM_SHIFT),
                       row_of(&left, cell, i, NORM_MEAN), tensors[0], upstream, adds ? base : NULL, d_input, to[0],
                       to[1], sums, threads);
        upstream = (Upstream){d_input, NULL, NULL, NULL, NULL, 0};
        if (adds) base = NULL;
        if (!cell->normed[i]) continue;
        float *const *d_norm = cell->gradients + of_norm(i), *through = coefficients + layer->c_in;
        double values = (double)(layer->batch * layer->height * layer->width);
        norm_gradient(left.norms[i], sums, values, layer->c_in, d_norm[0], d_norm[1], coefficients);
        upstream = (Upstream){d_input, input, coefficients, through, through + layer->c_in, 0};
    }
    if (d && (upstream.output || base))
        linear_batch(upstream, base, d, cell->layers->batch, pixels_of(cell, 0), channels_of(cell, 0), threads);
}
