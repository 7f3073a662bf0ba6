/* Layers of convolution cells, forward and backward: [batch norm,] activation, [repeated pixels,] convolution.
 *
 * A layer reads its input once and writes its output once: the norm is a scale and a shift per channel, applied with the
 * activation while a few images are copied into scratch memory that stays in the cache; backward, the gradient of the
 * layer's output is formed there likewise from what the next layer left. Images are shared out to threads. */

#include "cells.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#define MOST_THREADS 256
#define PIXELS_TOGETHER 64

enum { NONE, SWISH, ELU };

/* Maps (batch, height, width, c_in) to (batch, out_height, out_width, c_out); `repeat` 2 doubles height and width first. */
typedef struct {
    int64_t batch, height, width, c_in, c_out, out_height, out_width;
    int32_t kernel, stride, dilation, repeat, depthwise, activation;
} Layer;

/* The gradient of a layer's output: scale * gradient + output_scale * output + shift, with coefficients (batch, c) that
 * lie `per_image` apart (0: (c), the same for all images); a null `output` stands for zeros. */
typedef struct {
    const float *gradient, *output, *scale, *output_scale, *shift;
    int64_t per_image;
} Upstream;

float *scratch(int use, int64_t floats)
{
    static __thread float *piece[USES];
    static __thread int64_t size[USES];
    if (size[use] < floats) {
        free(piece[use]);
        size[use] = rounded(floats + floats / 4, 16);
        if (posix_memalign((void **)&piece[use], 64, (size_t)size[use] * sizeof(float))) abort();
    }
    return piece[use];
}

#define INLINE static inline __attribute__((always_inline))

/* Calls BODY(vectors, columns) for all channels from c = 0 on: four whole vectors at a time, one, or part of one. */
#define BY_CHUNKS(CHANNELS, BODY)                                                                                      \
    for (int64_t c = 0, left; (left = (CHANNELS) - c) > 0; c += left >= 4 * WIDE ? 4 * WIDE : WIDE) {                  \
        if (left >= 4 * WIDE) BODY(4, WIDE);                                                                           \
        else if (left >= WIDE) BODY(1, WIDE);                                                                          \
        else BODY(1, left);                                                                                            \
    }

INLINE vector chosen(int_vector mask, vector yes, vector no)
{
    return (vector)((mask & (int_vector)yes) | (~mask & (int_vector)no));
}

INLINE vector exponentials(vector x)
{
    float value[WIDE];
    store(value, x);
    for (int i = 0; i < WIDE; i++) value[i] = exponential(value[i]);
    return load(value);
}

INLINE vector activated(vector value, int activation)
{
    if (activation == SWISH) return value / (1.0f + exponentials(-value));
    if (activation == ELU) return chosen(value > 0.0f, value, exponentials(value) - 1.0f);
    return value;
}

INLINE vector slope(vector value, int activation)
{
    if (activation == SWISH) {
        vector sigmoid = 1.0f / (1.0f + exponentials(-value));
        return sigmoid * (1.0f + value * (1.0f - sigmoid));
    }
    if (activation == ELU) return chosen(value > 0.0f, (vector){0} + 1.0f, exponentials(value));
    return (vector){0} + 1.0f;
}

static int64_t padding(const Layer *of) { return (int64_t)of->dilation * (of->kernel - 1) / 2; }

/* What the layer's convolution reads. */
static Geometry forward_geometry(const Layer *of)
{
    int64_t around = 2 * padding(of);
    return (Geometry){of->height * of->repeat + around, of->width * of->repeat + around, of->c_in,
                      of->depthwise ? WIDE : of->c_in, of->out_height, of->out_width, of->kernel, of->stride, of->dilation};
}

/* What the convolution reads that turns the output's gradient, spread by the stride, into the input's. */
static Geometry backward_geometry(const Layer *of)
{
    int64_t around = 2 * padding(of), height = of->height * of->repeat, width = of->width * of->repeat;
    int64_t pixel = of->depthwise ? WIDE : rounded(of->c_out, panel_of(of->c_out));
    return (Geometry){height + around, width + around, of->c_out, pixel, height, width, of->kernel, 1, of->dilation};
}

/* Floats of a map in scratch memory; all blocks of a depthwise one. */
static int64_t map_size(const Geometry *of)
{
    return of->height * of->width * rounded(of->channels, of->pixel);
}

static int64_t images_together(const Layer *of, int64_t threads)
{
    int64_t pixels = of->out_height * of->out_width, fair = (of->batch + threads - 1) / threads;
    int64_t wanted = of->depthwise ? 1 : (PIXELS_TOGETHER + pixels - 1) / pixels;
    return wanted < fair ? wanted : fair;
}

/* Distance of two neighbouring vectors of channels in a prepared map: another block, or the same pixel. */
static int64_t vector_step(const Layer *of, const Geometry *g) { return of->depthwise ? g->height * g->width * WIDE : WIDE; }

/* Some channels of one image, normalised, activated and repeated, into the inside of a map. */
INLINE void prepare_channels(int activation, int vectors, int64_t columns, const Layer *of, const Geometry *g,
                             const float *x, const float *scale, const float *shift, float *map)
{
    int64_t next = vector_step(of, g), line = g->width * g->pixel;
    int64_t stored = of->depthwise ? WIDE : columns;
    vector times[4], plus[4];
    for (int v = 0; v < vectors; v++) {
        times[v] = load_some(scale + v * WIDE, columns);
        plus[v] = load_some(shift + v * WIDE, columns);
    }
    for (int64_t y = 0; y < of->height; y++)
        for (int64_t at = 0; at < of->width; at++, x += of->c_in) {
            float *out = map + y * of->repeat * line + at * of->repeat * g->pixel;
            for (int v = 0; v < vectors; v++) {
                vector value = activated(load_some(x + v * WIDE, columns) * times[v] + plus[v], activation);
                store_some(out + v * next, value, stored);
                if (of->repeat == 1) continue;
                store_some(out + v * next + g->pixel, value, stored);
                store_some(out + v * next + line, value, stored);
                store_some(out + v * next + line + g->pixel, value, stored);
            }
        }
}

INLINE void prepare_as(int activation, const Layer *of, const Geometry *g, const float *x, const float *scale,
                       const float *shift, float *map)
{
#define PREPARE(VECTORS, COLUMNS)                                                                                      \
    prepare_channels(activation, VECTORS, COLUMNS, of, g, x + c, scale + c, shift + c, map + c / WIDE * vector_step(of, g))
    BY_CHUNKS(of->c_in, PREPARE)
}

/* One image as the layer's convolution reads it, with zeros around. */
static void prepare(const Layer *of, const Geometry *g, const float *x, const float *scale, const float *shift, float *map)
{
    float *inside = map + padding(of) * (g->width + 1) * g->pixel;
    if (padding(of)) memset(map, 0, (size_t)map_size(g) * sizeof(float));
    if (of->activation == SWISH) prepare_as(SWISH, of, g, x, scale, shift, inside);
    else if (of->activation == ELU) prepare_as(ELU, of, g, x, scale, shift, inside);
    else prepare_as(NONE, of, g, x, scale, shift, inside);
}

/* Mean over pixels and sum of squared deviations from it of some channels, taken about the first pixel. */
INLINE void channel_statistics(int vectors, int64_t columns, const float *x, int64_t pixels, int64_t channels,
                               float *mean, float *squares)
{
    vector first[4], sum[4] = {0}, square[4] = {0};
    for (int v = 0; v < vectors; v++) first[v] = load_some(x + v * WIDE, columns);
    for (int64_t at = 0; at < pixels; at++, x += channels)
        for (int v = 0; v < vectors; v++) {
            vector deviation = load_some(x + v * WIDE, columns) - first[v];
            sum[v] += deviation;
            square[v] += deviation * deviation;
        }
    for (int v = 0; v < vectors; v++) {
        vector shift = sum[v] / (float)pixels;
        store_some(mean + v * WIDE, first[v] + shift, columns);
        store_some(squares + v * WIDE, square[v] - sum[v] * shift, columns);
    }
}

static void image_statistics(const float *x, int64_t pixels, int64_t channels, float *mean, float *squares)
{
#define STATISTICS(VECTORS, COLUMNS) channel_statistics(VECTORS, COLUMNS, x + c, pixels, channels, mean + c, squares + c)
    BY_CHUNKS(channels, STATISTICS)
}

/* Depthwise weights (channels, kernel^2) as (blocks, kernel^2, WIDE), turned for the backward convolution. */
static void pack_depthwise(const float *weight, int64_t channels, int64_t taps, int backward, float *packed)
{
#pragma omp for schedule(static)
    for (int64_t first = 0; first < channels; first += WIDE)
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t i = 0; i < WIDE; i++) {
                int64_t from = backward ? taps - 1 - tap : tap;
                packed[first * taps + tap * WIDE + i] = first + i < channels ? weight[(first + i) * taps + from] : 0.0f;
            }
}

static void pack(const Layer *of, const float *weight, int backward, float *packed)
{
    if (of->depthwise) pack_depthwise(weight, of->c_in, (int64_t)of->kernel * of->kernel, backward, packed);
    else pack_products(weight, of->c_out, of->c_in, of->kernel, backward, packed);
}

static int64_t packed_size(const Layer *of)
{
    int64_t taps = (int64_t)of->kernel * of->kernel;
    if (of->depthwise) return rounded(of->c_in, WIDE) * taps;
    int64_t forward = rounded(of->c_out, panel_of(of->c_out)) * of->c_in;
    int64_t backward = rounded(of->c_in, panel_of(of->c_in)) * of->c_out;
    return taps * (forward > backward ? forward : backward);
}

/* A row of zeros, or of a bias followed by zeros, long enough for whole panels. */
static float *start_row(const float *bias, int64_t channels, int64_t room)
{
    float *row = scratch(START, room + 3 * WIDE);
    memset(row, 0, (size_t)(room + 3 * WIDE) * sizeof(float));
    if (bias) memcpy(row, bias, (size_t)channels * sizeof(float));
    return row;
}

static void run_convolution(int depthwise, const Geometry *g, int64_t images, const float *map, const float *packed,
                            const float *start, int64_t n, float *out)
{
    if (depthwise) convolve_depthwise(g, map, packed, start, out);
    else convolve(g, images, map, packed, start, n, out);
}

/* Room for some maps, and for the pixels after the last that a tile reads in vain. */
static float *map_scratch(int use, const Geometry *g, int64_t images)
{
    return scratch(use, images * map_size(g) + ROWS * (g->pixel * g->stride + 1));
}

/* y (batch, out_height, out_width, c_out), and unless null the mean and the sum of squared deviations of each image's
 * channels (batch, c_out). scale and shift (c_in) are those of the norm; bias may be null. */
void vaebench_layer(Layer of, const float *x, const float *scale, const float *shift, const float *weight,
                    const float *bias, float *y, float *mean, float *squares, int32_t threads)
{
    Geometry g = forward_geometry(&of);
    int64_t together = images_together(&of, threads), in = of.height * of.width * of.c_in;
    int64_t pixels = of.out_height * of.out_width, out = pixels * of.c_out;
    float *packed = scratch(PACKED, packed_size(&of)), *start = start_row(bias, of.c_out, of.c_out);
#pragma omp parallel num_threads(threads)
    {
        pack(&of, weight, 0, packed);
        float *map = map_scratch(MAP, &g, together);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < of.batch; first += together) {
            int64_t images = of.batch - first < together ? of.batch - first : together;
            for (int64_t i = 0; i < images; i++)
                prepare(&of, &g, x + (first + i) * in, scale, shift, map + i * map_size(&g));
            run_convolution(of.depthwise, &g, images, map, packed, start, of.c_out, y + first * out);
            for (int64_t i = first; mean && i < first + images; i++)
                image_statistics(y + i * out, pixels, of.c_out, mean + i * of.c_out, squares + i * of.c_out);
        }
    }
}

/* Gradient of some channels of one image's output, spread by the stride; adds its sum over pixels to `sum`. */
INLINE void spread_channels(int vectors, int64_t columns, const Layer *of, const Geometry *g, const Upstream *up,
                            int64_t image, int64_t first, float *map, float *sum)
{
    int64_t next = vector_step(of, g), start = image * of->out_height * of->out_width * of->c_out + first;
    int64_t row = image * up->per_image + first;
    const float *gradient = up->gradient + start, *output = up->output ? up->output + start : NULL;
    vector scale[4], output_scale[4], shift[4], total[4] = {0};
    for (int v = 0; v < vectors; v++) {
        scale[v] = load_some(up->scale + row + v * WIDE, columns);
        output_scale[v] = output ? load_some(up->output_scale + row + v * WIDE, columns) : (vector){0};
        shift[v] = load_some(up->shift + row + v * WIDE, columns);
    }
    for (int64_t y = 0; y < of->out_height; y++)
        for (int64_t x = 0; x < of->out_width; x++, gradient += of->c_out) {
            float *out = map + (y * g->width + x) * of->stride * g->pixel;
            for (int v = 0; v < vectors; v++) {
                vector value = scale[v] * load_some(gradient + v * WIDE, columns) + shift[v];
                if (output) value += output_scale[v] * load_some(output + v * WIDE, columns);
                total[v] += value;
                store(out + v * next, value);
            }
            if (output) output += of->c_out;
        }
    for (int v = 0; v < vectors; v++)
        store_some(sum + first + v * WIDE, load_some(sum + first + v * WIDE, columns) + total[v], columns);
}

/* The gradient of one image's output as the backward convolution reads it, with zeros around and between. */
static void spread_gradient(const Layer *of, const Geometry *g, const Upstream *up, int64_t image, float *map, float *sum)
{
    float *inside = map + padding(of) * (g->width + 1) * g->pixel;
    if (padding(of) || of->stride > 1 || g->pixel > of->c_out) memset(map, 0, (size_t)map_size(g) * sizeof(float));
#define SPREAD(VECTORS, COLUMNS)                                                                                       \
    spread_channels(VECTORS, COLUMNS, of, g, up, image, c, inside + c / WIDE * vector_step(of, g), sum)
    BY_CHUNKS(of->c_out, SPREAD)
}

/* Gradient of the normalised values of some channels of one image, from that of the activated and repeated ones; adds
 * to the sums of the gradient and of its product with x - center. */
INLINE void channels_back(int activation, int vectors, int64_t columns, const Layer *of, const float *x,
                          const float *scale, const float *shift, const float *center, const float *gradient, float *d,
                          float *sum, float *product)
{
    int64_t channels = of->c_in, line = of->width * of->repeat * channels;
    vector times[4], plus[4], middle[4], total[4] = {0}, along[4] = {0};
    for (int v = 0; v < vectors; v++) {
        times[v] = load_some(scale + v * WIDE, columns);
        plus[v] = load_some(shift + v * WIDE, columns);
        middle[v] = load_some(center + v * WIDE, columns);
    }
    for (int64_t y = 0; y < of->height; y++)
        for (int64_t pixel = 0; pixel < of->width; pixel++, x += channels, d += channels)
            for (int v = 0; v < vectors; v++) {
                const float *from = gradient + (y * line + pixel * channels) * of->repeat + v * WIDE;
                vector value = load_some(x + v * WIDE, columns), whole = load_some(from, columns);
                if (of->repeat == 2)
                    whole = (whole + load_some(from + channels, columns))
                        + (load_some(from + line, columns) + load_some(from + line + channels, columns));
                whole *= slope(value * times[v] + plus[v], activation);
                store_some(d + v * WIDE, whole, columns);
                total[v] += whole;
                along[v] += whole * (value - middle[v]);
            }
    for (int v = 0; v < vectors; v++) {
        store_some(sum + v * WIDE, load_some(sum + v * WIDE, columns) + total[v], columns);
        store_some(product + v * WIDE, load_some(product + v * WIDE, columns) + along[v], columns);
    }
}

INLINE void back_as(int activation, const Layer *of, const float *x, const float *scale, const float *shift,
                    const float *center, const float *gradient, float *d, float *sum, float *product)
{
#define BACK(VECTORS, COLUMNS)                                                                                         \
    channels_back(activation, VECTORS, COLUMNS, of, x + c, scale + c, shift + c, center + c, gradient + c, d + c,     \
                  sum + c, product + c)
    BY_CHUNKS(of->c_in, BACK)
}

static void normalised_gradient(const Layer *of, const float *x, const float *scale, const float *shift,
                                const float *center, const float *gradient, float *d, float *sum, float *product)
{
    if (of->activation == SWISH) back_as(SWISH, of, x, scale, shift, center, gradient, d, sum, product);
    else if (of->activation == ELU) back_as(ELU, of, x, scale, shift, center, gradient, d, sum, product);
    else back_as(NONE, of, x, scale, shift, center, gradient, d, sum, product);
}

/* The sum of the threads' weight gradients as weights are laid out, (c_out, c_in or 1, kernel, kernel). */
static void gather_weights(const Layer *of, float *const *parts, int threads, int64_t row, float *out)
{
    int64_t taps = (int64_t)of->kernel * of->kernel, depth = of->depthwise ? 1 : of->c_in;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < of->c_out; n++)
        for (int64_t d = 0; d < depth; d++)
            for (int64_t tap = 0; tap < taps; tap++) {
                int64_t at = of->depthwise ? (n / WIDE * taps + tap) * WIDE + n % WIDE : (tap * depth + d) * row + n;
                float sum = parts[0][at];
                for (int part = 1; part < threads; part++) sum += parts[part][at];
                out[(n * depth + d) * taps + tap] = sum;
            }
}

/* Gradients of the normalised input (batch, height, width, c_in) unless null, of the weight, and of the bias unless null;
 * and sums (2, c_in) over all pixels of the former and of its product with x - center. Threads add in a fixed order. */
void vaebench_layer_backward(Layer of, const float *x, const float *scale, const float *shift, const float *center,
                             const float *weight, Upstream up, float *d, float *d_weight, float *d_bias, double *sums,
                             int32_t threads)
{
    Geometry g = forward_geometry(&of), back = backward_geometry(&of);
    int64_t together = images_together(&of, threads), in = of.height * of.width * of.c_in;
    int64_t repeated = of.repeat * of.repeat * in, taps = (int64_t)of.kernel * of.kernel, row = back.pixel;
    int64_t weights = taps * (of.depthwise ? rounded(of.c_in, WIDE) : of.c_in * row);
    int64_t most = of.c_in > of.c_out ? of.c_in : of.c_out, inner = padding(&of) * (back.width + 1) * back.pixel;
    float *packed = scratch(PACKED, packed_size(&of)), *start = start_row(NULL, 0, of.c_in), *parts[MOST_THREADS];
    double *totals[MOST_THREADS];
    int team = 1;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num();
        float *map = map_scratch(MAP, &g, together), *spread = map_scratch(SPREAD, &back, together);
        float *d_activated = scratch(INPUT_GRADIENT, together * repeated), *part = scratch(WEIGHT_GRADIENT, weights);
        double *total = (double *)scratch(SUMS, 9 * most);
        float *sum = (float *)(total + 3 * most), *product = sum + most, *bias = product + most;
        memset(part, 0, (size_t)weights * sizeof(float));
        memset(total, 0, (size_t)(3 * most) * sizeof(double));
        parts[me] = part, totals[me] = total;
        if (me == 0) team = omp_get_num_threads();
        if (d) pack(&of, weight, 1, packed);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < of.batch; first += together) {
            int64_t images = of.batch - first < together ? of.batch - first : together;
            memset(sum, 0, (size_t)(3 * most) * sizeof(float));
            for (int64_t i = 0; i < images; i++) {
                prepare(&of, &g, x + (first + i) * in, scale, shift, map + i * map_size(&g));
                spread_gradient(&of, &back, &up, first + i, spread + i * map_size(&back), bias);
            }
            if (of.depthwise) weight_gradient_depthwise(&g, map, &back, spread + inner, part);
            else weight_gradient(&g, images, map, &back, spread + inner, part);
            if (d) run_convolution(of.depthwise, &back, images, spread, packed, start, of.c_in, d_activated);
            for (int64_t i = 0; d && i < images; i++)
                normalised_gradient(&of, x + (first + i) * in, scale, shift, center, d_activated + i * repeated,
                                    d + (first + i) * in, sum, product);
            for (int64_t c = 0; c < most; c++) {
                total[c] += sum[c];
                total[most + c] += product[c];
                total[2 * most + c] += bias[c];
            }
        }
        gather_weights(&of, parts, team, row, d_weight);
    }
    for (int64_t c = 0; c < most; c++)
        for (int part = 0; part < team; part++) {
            if (c < of.c_in) sums[c] += totals[part][c], sums[of.c_in + c] += totals[part][most + c];
            if (d_bias && c < of.c_out) d_bias[c] += (float)totals[part][2 * most + c];
        }
}

/* Some channels of out = base (unless null) + the upstream's linear form, `start` floats into the maps. */
INLINE void linear_channels(int vectors, int64_t columns, const Upstream *of, int64_t row, const float *base, float *out,
                            int64_t start, int64_t pixels, int64_t channels)
{
    vector scale[4], output_scale[4], shift[4];
    for (int v = 0; v < vectors; v++) {
        scale[v] = load_some(of->scale + row + v * WIDE, columns);
        output_scale[v] = of->output ? load_some(of->output_scale + row + v * WIDE, columns) : (vector){0};
        shift[v] = load_some(of->shift + row + v * WIDE, columns);
    }
    for (int64_t at = start; at < start + pixels * channels; at += channels)
        for (int v = 0; v < vectors; v++) {
            vector value = scale[v] * load_some(of->gradient + at + v * WIDE, columns) + shift[v];
            if (of->output) value += output_scale[v] * load_some(of->output + at + v * WIDE, columns);
            if (base) value += load_some(base + at + v * WIDE, columns);
            store_some(out + at + v * WIDE, value, columns);
        }
}

/* out = base (unless null) + the upstream's linear form of two maps (batch, pixels, channels). */
void vaebench_linear(Upstream of, const float *base, float *out, int64_t batch, int64_t pixels, int64_t channels,
                     int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < batch; image++) {
#define LINEAR(VECTORS, COLUMNS)                                                                                       \
    linear_channels(VECTORS, COLUMNS, &of, image * of.per_image + c, base, out, image * pixels * channels + c, pixels, channels)
        BY_CHUNKS(channels, LINEAR)
    }
}

INLINE void sum_channels(int vectors, int64_t columns, const float *gradient, const float *y, const float *center,
                         float *sum, float *product, int64_t pixels, int64_t channels)
{
    vector middle[4], total[4] = {0}, along[4] = {0};
    for (int v = 0; v < vectors; v++) middle[v] = load_some(center + v * WIDE, columns);
    for (int64_t at = 0; at < pixels * channels; at += channels)
        for (int v = 0; v < vectors; v++) {
            vector value = load_some(gradient + at + v * WIDE, columns);
            total[v] += value;
            along[v] += value * (load_some(y + at + v * WIDE, columns) - middle[v]);
        }
    for (int v = 0; v < vectors; v++) {
        store_some(sum + v * WIDE, total[v], columns);
        store_some(product + v * WIDE, along[v], columns);
    }
}

/* Sums over pixels of `gradient` and of gradient (y - center), (batch, channels) each. */
void vaebench_sums(const float *gradient, const float *y, const float *center, float *sum, float *product, int64_t batch,
                   int64_t pixels, int64_t channels, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < batch; image++) {
        const float *g = gradient + image * pixels * channels, *of = y + image * pixels * channels;
        float *total = sum + image * channels, *along = product + image * channels;
#define SUM(VECTORS, COLUMNS)                                                                                          \
    sum_channels(VECTORS, COLUMNS, g + c, of + c, center + c, total + c, along + c, pixels, channels)
        BY_CHUNKS(channels, SUM)
    }
}

/* Mean and sum of squared deviations over the pixels of each image, (batch, channels) each. */
void vaebench_statistics(const float *x, float *mean, float *squares, int64_t batch, int64_t pixels, int64_t channels,
                         int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < batch; i++)
        image_statistics(x + i * pixels * channels, pixels, channels, mean + i * channels, squares + i * channels);
}

/* Batch norm as a scale and a shift: writes mean, 1 / sqrt(variance + epsilon), scale and shift (4, channels) from the
 * images' means and sums of squared deviations, and moves the running statistics; from those alone if `mean` is null.
 * The running variance is the unbiased one of every pixel counted `repeats` times. */
void vaebench_norm(const float *mean, const float *squares, int64_t batch, int64_t pixels, int64_t channels,
                   const float *weight, const float *bias, double epsilon, double momentum, double repeats,
                   float *running_mean, float *running_variance, float *out)
{
    double n = (double)batch * (double)pixels;
    for (int64_t c = 0; c < channels; c++) {
        double centre = 0, variance = 0;
        for (int64_t i = 0; i < batch && mean; i++) centre += mean[i * channels + c] / (double)batch;
        for (int64_t i = 0; i < batch && mean; i++) {
            double shift = mean[i * channels + c] - centre;
            variance += (squares[i * channels + c] + (double)pixels * shift * shift) / n;
        }
        if (mean && running_mean) {
            double unbiased = variance * (repeats * n / (repeats * n - 1));
            running_mean[c] = (float)((1 - momentum) * running_mean[c] + momentum * centre);
            running_variance[c] = (float)((1 - momentum) * running_variance[c] + momentum * unbiased);
        }
        if (!mean) centre = running_mean[c], variance = running_variance[c];
        double inverse = 1 / __builtin_sqrt(variance + epsilon), scale = inverse * (weight ? weight[c] : 1);
        out[c] = (float)centre, out[channels + c] = (float)inverse;
        out[2 * channels + c] = (float)scale, out[3 * channels + c] = (float)((bias ? bias[c] : 0) - centre * scale);
    }
}

/* Gradients of weight and bias (channels) and the coefficients (3, channels) with which the gradient of batch norm's
 * input is scale * d + output_scale * x + shift, from the norm (4, channels) and the sums (2, channels) of d over n
 * values and of d (x - mean). */
void vaebench_norm_backward(const float *norm, const double *sums, double n, int64_t channels, float *d_weight,
                            float *d_bias, float *coefficients)
{
    for (int64_t c = 0; c < channels; c++) {
        double centre = norm[c], inverse = norm[channels + c], scale = norm[2 * channels + c];
        double mean = sums[c] / n, along = sums[channels + c] / n * inverse * inverse;
        d_weight[c] = (float)(sums[channels + c] * inverse), d_bias[c] = (float)sums[c];
        coefficients[c] = (float)scale, coefficients[channels + c] = (float)(-scale * along);
        coefficients[2 * channels + c] = (float)(scale * (along * centre - mean));
    }
}

#define MOST_LAYERS 8

/* A cell without gradients: layers with packed weights and start rows, norms (4, c) before each and after the last, the
 * two linear layers of the gate (none if `hidden` is 0), and the factor on the branch. */
typedef struct {
    int64_t count, hidden;
    float gain;
    Layer layers[MOST_LAYERS];
    const float *packed[MOST_LAYERS], *start[MOST_LAYERS], *norms[MOST_LAYERS + 1], *gate[4];
} Cell;

/* Packs a layer's weight and, as a row of whole panels, its bias (zeros if null). */
void vaebench_pack(Layer of, const float *weight, const float *bias, float *packed, float *start)
{
    pack(&of, weight, 0, packed);
    if (bias) memcpy(start, bias, (size_t)of.c_out * sizeof(float));
}

int64_t vaebench_packed_size(Layer of) { return packed_size(&of); }

/* out (rows) = weight (rows, columns) times x, plus bias. */
static void linear_layer(const float *weight, const float *bias, const float *x, int64_t rows, int64_t columns, float *out)
{
    for (int64_t row = 0; row < rows; row++) {
        float sum = bias[row];
        for (int64_t i = 0; i < columns; i++) sum += weight[row * columns + i] * x[i];
        out[row] = sum;
    }
}

/* scale and shift (c) of one image's last map y in the cell's output. */
static void open_gate(const Cell *of, const float *y, int64_t pixels, int64_t channels, float *scale, float *shift)
{
    const float *norm = of->norms[of->count];
    float *mean = scratch(SUMS, 3 * channels + of->hidden), *rest = mean + channels, *hidden = rest + channels;
    for (int64_t c = 0; c < channels; c++)
        scale[c] = of->gain * norm[2 * channels + c], shift[c] = of->gain * norm[3 * channels + c];
    if (!of->hidden) return;
    image_statistics(y, pixels, channels, mean, rest);
    for (int64_t c = 0; c < channels; c++) mean[c] = mean[c] * norm[2 * channels + c] + norm[3 * channels + c];
    linear_layer(of->gate[0], of->gate[1], mean, of->hidden, channels, hidden);
    for (int64_t i = 0; i < of->hidden; i++) hidden[i] = hidden[i] > 0.0f ? hidden[i] : 0.0f;
    linear_layer(of->gate[2], of->gate[3], hidden, channels, of->hidden, rest);
    for (int64_t c = 0; c < channels; c++) {
        float gate = 1.0f / (1.0f + exponential(-rest[c]));
        scale[c] *= gate, shift[c] *= gate;
    }
}

/* One layer over some images, without statistics. */
static void run_layer(const Layer *of, int64_t images, const float *x, const float *norm, const float *packed,
                      const float *start, float *y)
{
    Geometry g = forward_geometry(of);
    int64_t in = of->height * of->width * of->c_in, out = of->out_height * of->out_width * of->c_out;
    int64_t together = of->depthwise ? 1 : images;
    float *map = map_scratch(MAP, &g, together);
    for (int64_t first = 0; first < images; first += together) {
        for (int64_t i = 0; i < together; i++)
            prepare(of, &g, x + (first + i) * in, norm + 2 * of->c_in, norm + 3 * of->c_in, map + i * map_size(&g));
        run_convolution(of->depthwise, &g, together, map, packed, start, of->c_out, y + first * out);
    }
}

/* out = skip + gain gate norm(branch(x)), a few images at a time through all layers while they are in the cache. */
void vaebench_cell(const Cell *of, const float *x, const float *skip, float *out, int32_t threads)
{
    const Layer *first_layer = of->layers, *last = of->layers + of->count - 1;
    int64_t batch = last->batch, pixels = last->out_height * last->out_width, together = images_together(last, threads);
    int64_t in = first_layer->height * first_layer->width * first_layer->c_in, most = 0;
    for (int64_t i = 0; i < of->count; i++) {
        int64_t size = of->layers[i].out_height * of->layers[i].out_width * of->layers[i].c_out;
        most = size > most ? size : most;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < batch; first += together) {
        int64_t images = batch - first < together ? batch - first : together, size = pixels * last->c_out;
        float *y = scratch(SPREAD, 2 * together * most), *coefficients = scratch(START, 2 * last->c_out);
        const float *from = x + first * in;
        for (int64_t i = 0; i < of->count; i++) {
            float *to = y + i % 2 * together * most;
            run_layer(of->layers + i, images, from, of->norms[i], of->packed[i], of->start[i], to);
            from = to;
        }
        for (int64_t i = 0; i < images; i++, from += size) {
            open_gate(of, from, pixels, last->c_out, coefficients, coefficients + last->c_out);
            Upstream sum = {from, NULL, coefficients, NULL, coefficients + last->c_out, 0};
            const float *base = skip + (first + i) * size;
            float *into = out + (first + i) * size;
#define COMBINE(VECTORS, COLUMNS) linear_channels(VECTORS, COLUMNS, &sum, c, base, into, c, pixels, last->c_out)
            BY_CHUNKS(last->c_out, COMBINE)
        }
    }
}
