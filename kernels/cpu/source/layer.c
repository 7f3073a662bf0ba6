/* A layer of a convolution cell, forward and backward: [batch norm,] activation, [repeated pixels,] convolution.
 *
 * A layer reads its input once and writes its output once: the norm is a scale and a shift per channel, applied
 * with the activation while a few images are copied into padded maps, in scratch memory that stays in the cache;
 * backward, the gradient of the layer's output is formed there likewise from what the next layer left. Images are
 * shared out to threads. */

#include "layer.h"

#include "dense.h"
#include "depthwise.h"
#include "maps.h"
#include "norm.h"
#include "scratch.h"
#include "vector.h"

#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#define MOST_THREADS 256
#define ENOUGH_PIXELS 64 /* of output, to use packed weights often while they are in the cache */

int64_t images_at_once(const Layer *layer, int64_t threads)
{
    int64_t pixels = layer->out_height * layer->out_width, fair_share = (layer->batch + threads - 1) / threads;
    int64_t wanted = layer->depthwise ? 1 : (ENOUGH_PIXELS + pixels - 1) / pixels;
    return wanted < fair_share ? wanted : fair_share;
}

void pack_weight(const Layer *layer, const float *weight, int backward, float *packed)
{
    if (layer->depthwise) pack_depthwise(layer, weight, backward, packed);
    else pack_dense(layer, weight, backward, packed);
}

/* A bias, or nothing, followed by zeros: a row of `channels` that is long enough for whole panels. */
static float *start_row(const float *bias, int64_t channels)
{
    int64_t room = channels + 3 * WIDE; /* the widest panel has three vectors */
    float *row = scratch(START, room);
    memset(row, 0, (size_t)room * sizeof(float));
    if (bias) memcpy(row, bias, (size_t)channels * sizeof(float));
    return row;
}

/* Room for some padded maps, and for the pixels after the last that a tile reads in vain. */
static int64_t map_floats(const Geometry *g, int64_t images)
{
    return images * map_size(g) + MOST_TILES * TILE * (g->pixel * g->stride + 1);
}
static float *map_scratch(int use, const Geometry *g, int64_t images) { return scratch(use, map_floats(g, images)); }

/* out (pixels, n) = start + convolution of padded maps; of one map, and with nothing behind it, if depthwise. */
static void convolve(int depthwise, const Geometry *g, int64_t images, const float *map, const float *packed,
                     const float *start, const Epilogue *epilogue, int64_t n, float *out)
{
    if (depthwise) convolve_depthwise(g, map, packed, start, out);
    else convolve_dense(g, images, map, packed, start, epilogue, n, out);
}

/* Whether a pixel of the output depends on one of the input alone, at the same place. */
static int pointwise(const Layer *layer)
{
    return layer->kernel == 1 && layer->stride == 1 && layer->repeat == 1 && !layer->depthwise;
}

void run_layer(const Layer *layer, int64_t images, const float *x, const float *scale, const float *shift,
               const float *packed, const float *start, const float *base, float *y)
{
    Geometry g = forward_geometry(layer);
    int64_t at_once = layer->depthwise ? 1 : images;
    float *map = map_scratch(MAP, &g, at_once);
    for (int64_t first = 0; first < images; first += at_once) {
        for (int64_t i = 0; i < at_once; i++)
            pad_input(layer, &g, x + (first + i) * input_size(layer), scale, shift, map + i * map_size(&g));
        Epilogue epilogue = {NULL, base ? base + first * output_size(layer) : NULL};
        convolve(layer->depthwise, &g, at_once, map, packed, start, &epilogue, layer->c_out,
                 y + first * output_size(layer));
    }
}

int64_t shared_floats(const Layer *layer)
{
    Geometry g = forward_geometry(layer);
    return map_floats(&g, 1);
}

void share_layer(const Layer *layer, const float *x, const float *scale, const float *shift, const float *packed,
                 const float *start, const float *base, float *map, float *y)
{
    Geometry g = forward_geometry(layer), band = g;
    int64_t threads = omp_get_num_threads(), pad_at_once = (layer->height + threads - 1) / threads;
    int64_t at_once = (layer->out_height + threads - 1) / threads, line = layer->out_width * layer->c_out;
#pragma omp single
    zero_border(layer, &g, map);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < layer->height; first += pad_at_once) {
        int64_t left = layer->height - first;
        pad_lines(layer, &g, first, left < pad_at_once ? left : pad_at_once, x, scale, shift, map);
    }
#pragma omp for schedule(static)
    for (int64_t first = 0; first < layer->out_height; first += at_once) {
        int64_t left = layer->out_height - first;
        band.out_height = left < at_once ? left : at_once;
        Epilogue epilogue = {NULL, base ? base + first * line : NULL};
        convolve(layer->depthwise, &band, 1, map + first * g.stride * g.width * g.pixel, packed, start, &epilogue,
                 layer->c_out, y + first * line);
    }
}

/* y (batch, out_height, out_width, c_out), with `base`, laid out alike, added unless it is null (dense layers only);
 * and unless null the mean and the sum of squared deviations of each image's channels (batch, c_out). scale and shift
 * (c_in) are those of the norm; bias may be null. */
void layer_forward(Layer layer, const float *x, const float *scale, const float *shift, const float *weight,
                    const float *bias, const float *base, float *y, float *mean, float *squares, int32_t threads)
{
    int64_t at_once = images_at_once(&layer, threads), in = input_size(&layer), out = output_size(&layer);
    float *packed = scratch(PACKED, packed_size(&layer)), *start = start_row(bias, layer.c_out);
#pragma omp parallel num_threads(threads)
    {
        pack_weight(&layer, weight, 0, packed);
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < layer.batch; first += at_once) {
            int64_t images = layer.batch - first < at_once ? layer.batch - first : at_once;
            run_layer(&layer, images, x + first * in, scale, shift, packed, start, base ? base + first * out : NULL,
                      y + first * out);
            for (int64_t i = first; mean && i < first + images; i++)
                image_statistics(y + i * out, layer.out_height * layer.out_width, layer.c_out, mean + i * layer.c_out,
                                 squares + i * layer.c_out);
        }
    }
}

/* What all threads of a backward pass read and where they write; see layer_backward. */
typedef struct {
    Layer layer;
    Geometry forward, backward; /* of the input's and of the output's gradient's padded maps */
    const float *x, *scale, *shift, *center, *packed, *start, *base;
    Upstream upstream;
    float *d;
} Backward;

/* Sums over pixels, per channel: of d, of d (x - center), and of the output's gradient. */
enum { D, D_TIMES_X, D_OUTPUT, SUM_COUNT };

/* One thread's scratch memory: padded maps, slopes and the activated inputs' gradient for a few images; over all its
 * images the weight's gradient and the sums (SUM_COUNT, channels), which single precision holds for a few images
 * only. */
typedef struct {
    float *map, *spread, *slopes, *d_activated, *d_weight, *few_sums;
    double *sums;
    int64_t weight_size, channels;
} Workspace;

static Workspace new_workspace(const Backward *pass, int64_t images)
{
    const Layer *layer = &pass->layer;
    int64_t padded = layer->depthwise ? round_up(layer->c_in, WIDE) : layer->c_in * pass->backward.pixel;
    Workspace w;
    w.channels = layer->c_in > layer->c_out ? layer->c_in : layer->c_out;
    w.weight_size = taps_of(layer) * padded;
    w.map = map_scratch(MAP, &pass->forward, images);
    w.spread = map_scratch(SPREAD, &pass->backward, images);
    w.slopes = scratch(SLOPES, images * input_size(layer));
    w.d_activated = scratch(INPUT_GRADIENT, images * layer->repeat * layer->repeat * input_size(layer));
    w.d_weight = scratch(WEIGHT_GRADIENT, w.weight_size);
    w.sums = (double *)scratch(SUMS, 3 * SUM_COUNT * w.channels); /* a double is two floats */
    w.few_sums = (float *)(w.sums + SUM_COUNT * w.channels);
    memset(w.d_weight, 0, (size_t)w.weight_size * sizeof(float));
    memset(w.sums, 0, (size_t)(SUM_COUNT * w.channels) * sizeof(double));
    return w;
}

/* The gradient of the output of `images` images as the convolutions back read it: in place where it lies so, else in
 * padded maps; adds its sum over pixels. */
static const float *output_gradient(const Backward *pass, int64_t first, int64_t images, const Workspace *w)
{
    const Layer *layer = &pass->layer;
    const Geometry *backward = &pass->backward;
    const float *gradient = pass->upstream.gradient + first * output_size(layer);
    float *sum = w->few_sums + D_OUTPUT * w->channels;
    int64_t pixels = layer->out_height * layer->out_width;
    int whole_tiles = images * pixels % TILE == 0; /* nothing behind the map is read */
    int in_place = !pass->upstream.scale && pointwise(layer) && backward->pixel == layer->c_out && whole_tiles;
    for (int64_t i = 0; i < images; i++)
        if (in_place) sum_pixels(gradient + i * output_size(layer), pixels, layer->c_out, sum);
        else spread_gradient(layer, backward, &pass->upstream, first + i, w->spread + i * map_size(backward), sum);
    return in_place ? gradient : w->spread;
}

/* The gradient d of the input of `images` images from that of the output, `gradient`. */
static void input_gradient(const Backward *pass, int64_t first, int64_t images, const float *gradient,
                           const Workspace *w)
{
    const Layer *layer = &pass->layer;
    int64_t in = input_size(layer), activated = layer->repeat * layer->repeat * in;
    const float *x = pass->x + first * in;
    float *d = pass->d + first * in;
    int plain = plain_values(layer, pass->scale);
    Epilogue slopes = {w->slopes, pass->base ? pass->base + first * in : NULL}, nothing = {NULL, NULL};
    convolve(layer->depthwise, &pass->backward, images, gradient, pass->packed, pass->start, plain ? &slopes : &nothing,
             layer->c_in, plain ? d : w->d_activated);
    for (int64_t i = 0; !plain && i < images; i++)
        normalised_gradient(layer, x + i * in, pass->scale, pass->shift, pass->center, w->d_activated + i * activated,
                            d + i * in, w->few_sums + D * w->channels, w->few_sums + D_TIMES_X * w->channels);
}

/* The pass over `images` images from `first` on: d, and what they add to the weight's gradient and the sums. */
static void backward_images(const Backward *pass, int64_t first, int64_t images, const Workspace *w)
{
    const Layer *layer = &pass->layer;
    const Geometry *forward = &pass->forward, *backward = &pass->backward;
    int64_t in = input_size(layer);
    memset(w->few_sums, 0, (size_t)(SUM_COUNT * w->channels) * sizeof(float));
    for (int64_t i = 0; i < images; i++) {
        const float *x = pass->x + (first + i) * in;
        float *map = w->map + i * map_size(forward);
        if (plain_values(layer, pass->scale)) pad_input_with_slopes(layer, forward, x, map, w->slopes + i * in);
        else pad_input(layer, forward, x, pass->scale, pass->shift, map);
    }
    const float *gradient = output_gradient(pass, first, images, w), *inside = gradient + first_inside(layer, backward);
    if (layer->depthwise) weight_gradient_depthwise(forward, w->map, backward, inside, w->d_weight);
    else weight_gradient_dense(forward, images, w->map, backward, inside, w->d_weight);
    if (pass->d) input_gradient(pass, first, images, gradient, w);
    for (int64_t c = 0; c < SUM_COUNT * w->channels; c++) w->sums[c] += w->few_sums[c];
}

/* The sum of the threads' weight gradients as weights are laid out, (c_out, c_in or 1, kernel, kernel). */
static void sum_weight_gradients(const Layer *layer, const Workspace *of_thread, int threads, int64_t row, float *out)
{
    int64_t taps = taps_of(layer), depth = layer->depthwise ? 1 : layer->c_in;
    const float *parts[MOST_THREADS];
#pragma omp for schedule(static)
    for (int64_t first = 0; first < layer->c_out; first += WIDE) {
        int64_t columns = layer->c_out - first < WIDE ? layer->c_out - first : WIDE;
        for (int thread = 0; thread < threads; thread++)
            parts[thread] = of_thread[thread].d_weight + (layer->depthwise ? first * taps : first);
        unpack_weights(taps, depth, columns, parts, threads, layer->depthwise ? WIDE : row, out + first * depth * taps);
    }
}

/* Adds the threads' sums to those of the batch, (2, c_in) and (c_out), unless these are null. */
static void sum_sums(const Layer *layer, const Workspace *of_thread, int threads, double *sums, float *d_bias)
{
    int64_t channels = of_thread[0].channels;
    for (int thread = 0; thread < threads; thread++) {
        const double *part = of_thread[thread].sums;
        for (int64_t c = 0; sums && c < layer->c_in; c++) {
            sums[c] += part[D * channels + c];
            sums[layer->c_in + c] += part[D_TIMES_X * channels + c];
        }
        for (int64_t c = 0; d_bias && c < layer->c_out; c++) d_bias[c] += (float)part[D_OUTPUT * channels + c];
    }
}

/* Gradients of the normalised input (batch, height, width, c_in) unless null, of the weight, and of the bias unless
 * null; and, unless null, sums (2, c_in) over all pixels of the former and of its product with x - center. Where values
 * are plain (`plain_values`), `base`, laid out as the input, is added to its gradient unless it is null. Threads add in
 * a fixed order. */
void layer_backward(Layer layer, const float *x, const float *scale, const float *shift, const float *center,
                             const float *weight, Upstream upstream, const float *base, float *d, float *d_weight,
                             float *d_bias, double *sums, int32_t threads)
{
    float *packed = scratch(PACKED, packed_size(&layer)), *start = start_row(NULL, layer.c_in);
    Backward pass = {layer, forward_geometry(&layer), backward_geometry(&layer), x, scale, shift, center, packed, start,
                     base, upstream, d};
    int64_t at_once = images_at_once(&layer, threads);
    Workspace of_thread[MOST_THREADS];
    int team = 1; /* there may be fewer threads than asked for */
    if (threads > MOST_THREADS) threads = MOST_THREADS;
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num();
        if (me == 0) team = omp_get_num_threads();
        Workspace w = of_thread[me] = new_workspace(&pass, at_once);
        if (d) pack_weight(&layer, weight, 1, packed);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < layer.batch; first += at_once)
            backward_images(&pass, first, layer.batch - first < at_once ? layer.batch - first : at_once, &w);
        sum_weight_gradients(&layer, of_thread, team, pass.backward.pixel, d_weight);
    }
    sum_sums(&layer, of_thread, team, sums, d_bias);
}
