/* Depthwise convolutions, vectorised over channels; maps in blocks (blocks, height, width, WIDE). */

#include "layout.h"

#define TOGETHER 4 /* output pixels whose sums are in registers together */

/* Some neighbouring output pixels of one block; weights (kernel^2, WIDE). */
static inline __attribute__((always_inline)) void pixels_forward(const Geometry *of, int kernel, int pixels,
                                                                 const float *map, const float *weight, vector start,
                                                                 float *out, int64_t columns)
{
    vector sum[TOGETHER];
    for (int pixel = 0; pixel < pixels; pixel++) sum[pixel] = start;
    for (int row = 0; row < kernel; row++)
        _Pragma("GCC unroll 5") for (int column = 0; column < kernel; column++) {
            vector tap = load(weight + (row * kernel + column) * WIDE);
            const float *from = map + (row * of->width + column) * WIDE;
            _Pragma("GCC unroll 4") for (int pixel = 0; pixel < pixels; pixel++)
                sum[pixel] += load(from + pixel * of->stride * WIDE) * tap;
        }
    for (int pixel = 0; pixel < pixels; pixel++) store_some(out + pixel * of->channels, sum[pixel], columns);
}

/* One block: out (pixels, channels) rows. */
static inline __attribute__((always_inline)) void block_forward(const Geometry *of, int kernel, const float *map,
                                                                const float *weight, vector start, float *out,
                                                                int64_t columns)
{
    for (int64_t y = 0; y < of->out_height; y++) {
        const float *line = map + y * of->stride * of->width * WIDE;
        float *into = out + y * of->out_width * of->channels;
        int64_t x = 0;
        for (; x + TOGETHER <= of->out_width; x += TOGETHER)
            pixels_forward(of, kernel, TOGETHER, line + x * of->stride * WIDE, weight, start, into + x * of->channels, columns);
        for (; x < of->out_width; x++)
            pixels_forward(of, kernel, 1, line + x * of->stride * WIDE, weight, start, into + x * of->channels, columns);
    }
}

/* out (pixels, channels) = bias + convolution of one map; weights (blocks, kernel^2, WIDE), bias for whole blocks. */
void convolve_depthwise(const Geometry *of, const float *map, const float *weight, const float *bias, float *out)
{
    int64_t plane = of->height * of->width * WIDE, taps = (int64_t)of->kernel * of->kernel;
    for (int64_t first = 0; first < of->channels; first += WIDE) {
        int64_t columns = of->channels - first;
        const float *at = map + first / WIDE * plane, *of_block = weight + first * taps;
        if (of->kernel == 3) block_forward(of, 3, at, of_block, load(bias + first), out + first, columns);
        else if (of->kernel == 5) block_forward(of, 5, at, of_block, load(bias + first), out + first, columns);
        else block_forward(of, of->kernel, at, of_block, load(bias + first), out + first, columns);
    }
}

/* Some rows of taps of one block's weight gradient (kernel^2, WIDE), added to `out`. */
static inline __attribute__((always_inline)) void block_gradient(const Geometry *of, int kernel, int first, int rows,
                                                                 const float *map, const float *gradient,
                                                                 int64_t line_gradient, float *out)
{
    int64_t line = of->width * WIDE;
    vector sum[25] = {0};
    for (int64_t y = 0; y < of->out_height; y++)
        for (int64_t x = 0; x < of->out_width; x++) {
            const float *from = map + (y * of->stride + first) * line + x * of->stride * WIDE;
            vector g = load(gradient + y * of->stride * line_gradient + x * of->stride * WIDE);
            _Pragma("GCC unroll 5") for (int row = 0; row < rows; row++)
                _Pragma("GCC unroll 5") for (int column = 0; column < kernel; column++)
                    sum[row * kernel + column] += g * load(from + row * line + column * WIDE);
        }
    for (int tap = 0; tap < rows * kernel; tap++) {
        float *at = out + (first * kernel + tap) * WIDE;
        store(at, load(at) + sum[tap]);
    }
}

/* out (blocks, kernel^2, WIDE) += gradient of the weights, from one map and the spread gradient of its output: the
 * gradient of pixel (y, x) lies at (y, x) times the stride, counted from `gradient` on. */
void weight_gradient_depthwise(const Geometry *of, const float *map, const Geometry *spread, const float *gradient,
                               float *out)
{
    int64_t plane = of->height * of->width * WIDE, gradient_plane = spread->height * spread->width * WIDE;
    int64_t taps = (int64_t)of->kernel * of->kernel;
    for (int64_t first = 0; first < of->channels; first += WIDE) {
        const float *at = map + first / WIDE * plane, *g = gradient + first / WIDE * gradient_plane;
        float *into = out + first * taps;
        if (of->kernel == 3) block_gradient(of, 3, 0, 3, at, g, spread->width * WIDE, into);
        else if (of->kernel == 5) block_gradient(of, 5, 0, 5, at, g, spread->width * WIDE, into);
        else
            for (int row = 0; row < of->kernel; row++)
                block_gradient(of, of->kernel, row, 1, at, g, spread->width * WIDE, into);
    }
}
