/* Passes over maps, a few channels at a time: what a convolution reads and what its gradient becomes, statistics of
 * images, and linear forms of two maps. */

#include "layout.h"

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

int64_t padding(const Layer *of) { return (int64_t)of->dilation * (of->kernel - 1) / 2; }

/* What the layer's convolution reads. */
Geometry forward_geometry(const Layer *of)
{
    int64_t around = 2 * padding(of);
    return (Geometry){of->height * of->repeat + around, of->width * of->repeat + around, of->c_in,
                      of->depthwise ? WIDE : of->c_in, of->out_height, of->out_width, of->kernel, of->stride, of->dilation};
}

/* What the convolution reads that turns the output's gradient, spread by the stride, into the input's. */
Geometry backward_geometry(const Layer *of)
{
    int64_t around = 2 * padding(of), height = of->height * of->repeat, width = of->width * of->repeat;
    int64_t pixel = of->depthwise ? WIDE : rounded(of->c_out, panel_of(of->c_out));
    return (Geometry){height + around, width + around, of->c_out, pixel, height, width, of->kernel, 1, of->dilation};
}

/* Floats of a map in scratch memory; all blocks of a depthwise one. */
int64_t map_size(const Geometry *of)
{
    return of->height * of->width * rounded(of->channels, of->pixel);
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
void prepare(const Layer *of, const Geometry *g, const float *x, const float *scale, const float *shift, float *map)
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

void image_statistics(const float *x, int64_t pixels, int64_t channels, float *mean, float *squares)
{
#define STATISTICS(VECTORS, COLUMNS) channel_statistics(VECTORS, COLUMNS, x + c, pixels, channels, mean + c, squares + c)
    BY_CHUNKS(channels, STATISTICS)
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
void spread_gradient(const Layer *of, const Geometry *g, const Upstream *up, int64_t image, float *map, float *sum)
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

void normalised_gradient(const Layer *of, const float *x, const float *scale, const float *shift,
                                const float *center, const float *gradient, float *d, float *sum, float *product)
{
    if (of->activation == SWISH) back_as(SWISH, of, x, scale, shift, center, gradient, d, sum, product);
    else if (of->activation == ELU) back_as(ELU, of, x, scale, shift, center, gradient, d, sum, product);
    else back_as(NONE, of, x, scale, shift, center, gradient, d, sum, product);
}

/* Some channels of out = base (unless null) + the upstream's linear form, from channel `start` on. */
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

/* out = base (unless null) + the upstream's linear form for one image, all (pixels, channels); `row` is the first of its
 * coefficients. */
void linear_image(const Upstream *of, int64_t row, const float *base, float *out, int64_t pixels, int64_t channels)
{
#define LINEAR(VECTORS, COLUMNS) linear_channels(VECTORS, COLUMNS, of, row + c, base, out, c, pixels, channels)
    BY_CHUNKS(channels, LINEAR)
}

/* out = base (unless null) + the upstream's linear form of two maps (batch, pixels, channels). */
void vaebench_linear(Upstream of, const float *base, float *out, int64_t batch, int64_t pixels, int64_t channels,
                     int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < batch; image++) {
        int64_t start = image * pixels * channels;
        Upstream one = of;
        one.gradient += start;
        if (of.output) one.output += start;
        linear_image(&one, image * of.per_image, base ? base + start : NULL, out + start, pixels, channels);
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

