/* Depthwise convolutions, vectorised over channels; maps in blocks (blocks, height, width, WIDE). Kernels of 3 and
 * 5 get loops of their own, with constant bounds. */

#include "depthwise.h"

#include "vector.h"

#define PIXELS 4     /* neighbouring output pixels whose sums are in registers together */
#define MOST_SUMS 25 /* taps of a 5 x 5 kernel, whose gradients are in registers together */

/* Some neighbouring output pixels of one block; weights (kernel^2, WIDE). */
INLINE void pixels_forward(const Geometry *g, int kernel, int pixels, const float *map, const float *weight,
                           vector bias, float *out, int64_t columns)
{
    vector sum[PIXELS];
    for (int pixel = 0; pixel < pixels; pixel++) sum[pixel] = bias;
    for (int row = 0; row < kernel; row++)
        _Pragma("GCC unroll 5") for (int column = 0; column < kernel; column++) {
            vector tap = load(weight + (row * kernel + column) * WIDE);
            const float *from = map + (row * g->width + column) * WIDE;
            _Pragma("GCC unroll 4") for (int pixel = 0; pixel < pixels; pixel++)
                sum[pixel] += load(from + pixel * g->stride * WIDE) * tap;
        }
    for (int pixel = 0; pixel < pixels; pixel++) store_some(out + pixel * g->channels, sum[pixel], columns);
}

/* One block: out (pixels, channels) rows, of which `columns` are the block's. */
INLINE void block_forward(const Geometry *g, int kernel, const float *map, const float *weight, vector bias, float *out,
                          int64_t columns)
{
    int64_t step = g->stride * WIDE;
    for (int64_t y = 0; y < g->out_height; y++) {
        const float *line = map + y * step * g->width;
        float *out_line = out + y * g->out_width * g->channels;
        int64_t x = 0;
        for (; x + PIXELS <= g->out_width; x += PIXELS)
            pixels_forward(g, kernel, PIXELS, line + x * step, weight, bias, out_line + x * g->channels, columns);
        for (; x < g->out_width; x++)
            pixels_forward(g, kernel, 1, line + x * step, weight, bias, out_line + x * g->channels, columns);
    }
}

void convolve_depthwise(const Geometry *g, const float *map, const float *packed, const float *bias, float *out)
{
    int64_t block_size = g->height * g->width * WIDE, taps = (int64_t)g->kernel * g->kernel;
    for (int64_t first = 0; first < g->channels; first += WIDE) {
        int64_t columns = g->channels - first;
        const float *block = map + first / WIDE * block_size, *weight = packed + first * taps;
        if (g->kernel == 3) block_forward(g, 3, block, weight, load(bias + first), out + first, columns);
        else if (g->kernel == 5) block_forward(g, 5, block, weight, load(bias + first), out + first, columns);
        else block_forward(g, g->kernel, block, weight, load(bias + first), out + first, columns);
    }
}

/* Some rows of taps of one block's weight gradient (kernel^2, WIDE), added to `out`. */
INLINE void block_gradient(const Geometry *g, int kernel, int first, int rows, const float *map, const float *gradient,
                           int64_t gradient_line, float *out)
{
    int64_t line = g->width * WIDE;
    vector sum[MOST_SUMS] = {0};
    for (int64_t y = 0; y < g->out_height; y++)
        for (int64_t x = 0; x < g->out_width; x++) {
            const float *from = map + (y * g->stride + first) * line + x * g->stride * WIDE;
            vector d = load(gradient + y * g->stride * gradient_line + x * g->stride * WIDE);
            _Pragma("GCC unroll 5") for (int row = 0; row < rows; row++)
                _Pragma("GCC unroll 5") for (int column = 0; column < kernel; column++)
                    sum[row * kernel + column] += d * load(from + row * line + column * WIDE);
        }
    for (int tap = 0; tap < rows * kernel; tap++) {
        float *at = out + (first * kernel + tap) * WIDE;
        store(at, load(at) + sum[tap]);
    }
}

void weight_gradient_depthwise(const Geometry *g, const float *map, const Geometry *spread, const float *gradient,
                               float *out)
{
    int64_t block_size = g->height * g->width * WIDE, line = spread->width * WIDE;
    int64_t taps = (int64_t)g->kernel * g->kernel;
    for (int64_t first = 0; first < g->channels; first += WIDE) {
        const float *block = map + first / WIDE * block_size, *d = gradient + first / WIDE * spread->height * line;
        float *sum = out + first * taps;
        if (g->kernel == 3) block_gradient(g, 3, 0, 3, block, d, line, sum);
        else if (g->kernel == 5) block_gradient(g, 5, 0, 5, block, d, line, sum);
        else /* a row of taps at a time */
            for (int row = 0; row < g->kernel; row++) block_gradient(g, g->kernel, row, 1, block, d, line, sum);
    }
}

void pack_depthwise(const Layer *layer, const float *weight, int backward, float *packed)
{
    int64_t channels = layer->c_in, taps = taps_of(layer);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < channels; first += WIDE)
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t i = 0; i < WIDE; i++) {
                int64_t from = backward ? taps - 1 - tap : tap;
                packed[first * taps + tap * WIDE + i] = first + i < channels ? weight[(first + i) * taps + from] : 0.0f;
            }
}
