/* Layers of convolution cells, forward and backward: [batch norm,] activation, [repeated pixels,] convolution.
 *
 * A layer reads its input once and writes its output once: the norm is a scale and a shift per channel, applied with the
 * activation while a few images are copied into scratch memory that stays in the cache; backward, the gradient of the
 * layer's output is formed there likewise from what the next layer left. Images are shared out to threads. */

#include "layout.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#define MOST_THREADS 256
#define PIXELS_TOGETHER 64

static int64_t images_together(const Layer *of, int64_t threads)
{
    int64_t pixels = of->out_height * of->out_width, fair = (of->batch + threads - 1) / threads;
    int64_t wanted = of->depthwise ? 1 : (PIXELS_TOGETHER + pixels - 1) / pixels;
    return wanted < fair ? wanted : fair;
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
            linear_image(&sum, 0, skip + (first + i) * size, out + (first + i) * size, pixels, last->c_out);
        }
    }
}
