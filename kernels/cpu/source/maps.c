/* Passes over the maps of one image, a few channels at a time, in which norm, activation, repeated pixels and
 * padding cost one read and one write together. */

#include "maps.h"

#include "activation.h"
#include "vector.h"

/* Coefficients from channel c on; null stays null. */
INLINE const float *from_channel(const float *of, int64_t c) { return of ? of + c : NULL; }

int plain_values(const Layer *layer, const float *scale)
{
    return !scale && !layer->depthwise && layer->repeat == 1;
}

void zero_border(const Layer *layer, const Geometry *g, float *map)
{
    int64_t inside = first_inside(layer, g), beside = inside / (g->width + 1); /* floats */
    int64_t line = g->width * g->pixel, size = g->height * line;
    for (float *end = map + map_size(g); inside && map < end; map += size) { /* block by block */
        memset(map, 0, (size_t)inside * sizeof(float));
        for (int64_t at = inside + line - 2 * beside; at < size - inside; at += line)
            memset(map + at, 0, (size_t)(2 * beside) * sizeof(float));
        memset(map + size - inside, 0, (size_t)inside * sizeof(float));
    }
}

/* Without a norm, channels are alike: rows of `count` floats, `step` apart in the map, whatever their pixels are. */
INLINE void pad_rows(int activation, int64_t rows, int64_t count, const float *x, float *map, int64_t step)
{
    for (int64_t row = 0; row < rows; row++, x += count, map += step)
        for (int64_t i = 0; i < count; i += WIDE)
            store_some(map + i, activated(load_some(x + i, count - i), activation), count - i);
}

/* The same; and the slopes of the activation, laid out as x. */
INLINE void pad_rows_with_slopes(int activation, int64_t rows, int64_t count, const float *x, float *map, int64_t step,
                                 float *slopes)
{
    for (int64_t row = 0; row < rows; row++, x += count, map += step, slopes += count)
        for (int64_t i = 0; i < count; i += WIDE) {
            vector derivative, value = activated_and_slope(load_some(x + i, count - i), activation, &derivative);
            store_some(map + i, value, count - i);
            store_some(slopes + i, derivative, count - i);
        }
}

/* Some channels of one image into the inside of a map. */
INLINE void pad_channels(int activation, int vectors, int64_t columns, const Layer *layer, const Geometry *g,
                         const float *x, const float *scale, const float *shift, float *map)
{
    int64_t next = vector_step(layer, g), pixel = g->pixel, line = g->width * pixel, channels = layer->c_in;
    int64_t height = layer->height, width = layer->width, repeat = layer->repeat;
    int64_t stored = layer->depthwise ? WIDE : columns; /* blocks are whole */
    vector scales[CHUNK], shifts[CHUNK];
    for (int v = 0; v < vectors; v++) {
        scales[v] = scale ? load_some(scale + v * WIDE, columns) : (vector){0} + 1.0f;
        shifts[v] = scale ? load_some(shift + v * WIDE, columns) : (vector){0};
    }
    for (int64_t row = 0; row < height; row++)
        for (int64_t column = 0; column < width; column++, x += channels) {
            float *out = map + row * repeat * line + column * repeat * pixel;
            for (int v = 0; v < vectors; v++) {
                fetch(x + AHEAD * channels + v * WIDE);
                vector value = activated(load_some(x + v * WIDE, columns) * scales[v] + shifts[v], activation);
                store_some(out + v * next, value, stored);
                if (repeat == 1) continue;
                store_some(out + v * next + pixel, value, stored);
                store_some(out + v * next + line, value, stored);
                store_some(out + v * next + line + pixel, value, stored);
            }
        }
}

INLINE void pad_activated(int activation, const Layer *layer, const Geometry *g, const float *x, const float *scale,
                          const float *shift, float *map)
{
    if (plain_values(layer, scale)) {
        pad_rows(activation, layer->height, layer->width * layer->c_in, x, map, g->width * g->pixel);
        return;
    }
#define PAD(VECTORS, COLUMNS)                                                                                          \
    pad_channels(activation, VECTORS, COLUMNS, layer, g, x + c, from_channel(scale, c), from_channel(shift, c),        \
                 map + c / WIDE * vector_step(layer, g))
    BY_CHUNKS(layer->c_in, PAD)
}

void pad_lines(const Layer *layer, const Geometry *g, int64_t first, int64_t lines, const float *x, const float *scale,
               const float *shift, float *map)
{
    Layer some = *layer;
    some.height = lines;
    x += first * layer->width * layer->c_in;
    map += first_inside(layer, g) + first * layer->repeat * g->width * g->pixel;
#define PAD_ACTIVATED(ACTIVATION) pad_activated(ACTIVATION, &some, g, x, scale, shift, map)
    BY_ACTIVATION(layer->activation, PAD_ACTIVATED)
}

void pad_input(const Layer *layer, const Geometry *g, const float *x, const float *scale, const float *shift,
               float *map)
{
    zero_border(layer, g, map);
    pad_lines(layer, g, 0, layer->height, x, scale, shift, map);
}

void pad_input_with_slopes(const Layer *layer, const Geometry *g, const float *x, float *map, float *slopes)
{
    int64_t inside = first_inside(layer, g);
    zero_border(layer, g, map);
#define PAD_WITH_SLOPES(ACTIVATION)                                                                                    \
    pad_rows_with_slopes(ACTIVATION, layer->height, layer->width * layer->c_in, x, map + inside, g->width * g->pixel,  \
                         slopes)
    BY_ACTIVATION(layer->activation, PAD_WITH_SLOPES)
}

/* Some channels, from channel `first` on. */
INLINE void spread_channels(int vectors, int64_t columns, const Layer *layer, const Geometry *g, const Upstream *up,
                            int64_t image, int64_t first, float *map, float *sum)
{
    int64_t next = vector_step(layer, g), start = image * output_size(layer) + first;
    int64_t coefficient = image * up->per_image + first, channels = layer->c_out, step = layer->stride * g->pixel;
    int64_t height = layer->out_height, width = layer->out_width, line = g->width * step;
    const float *gradient = up->gradient + start, *output = up->output ? up->output + start : NULL;
    vector scale[CHUNK], output_scale[CHUNK], shift[CHUNK], total[CHUNK] = {0};
    for (int v = 0; v < vectors; v++) {
        scale[v] = up->scale ? load_some(up->scale + coefficient + v * WIDE, columns) : (vector){0} + 1.0f;
        output_scale[v] = output ? load_some(up->output_scale + coefficient + v * WIDE, columns) : (vector){0};
        shift[v] = up->shift ? load_some(up->shift + coefficient + v * WIDE, columns) : (vector){0};
    }
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++, gradient += channels) {
            float *out = map + y * line + x * step;
            for (int v = 0; v < vectors; v++) {
                fetch(gradient + AHEAD * channels + v * WIDE);
                vector value = scale[v] * load_some(gradient + v * WIDE, columns) + shift[v];
                if (output) fetch(output + AHEAD * channels + v * WIDE);
                if (output) value += output_scale[v] * load_some(output + v * WIDE, columns);
                total[v] += value;
                store(out + v * next, value);
            }
            if (output) output += channels;
        }
    for (int v = 0; v < vectors; v++)
        store_some(sum + first + v * WIDE, load_some(sum + first + v * WIDE, columns) + total[v], columns);
}

void spread_gradient(const Layer *layer, const Geometry *g, const Upstream *up, int64_t image, float *map, float *sum)
{
    int64_t inside = first_inside(layer, g);
    int gaps = layer->stride > 1 || g->pixel > round_up(layer->c_out, WIDE);
    if (gaps) memset(map, 0, (size_t)map_size(g) * sizeof(float));
    else zero_border(layer, g, map);
#define SPREAD_CHANNELS(VECTORS, COLUMNS)                                                                              \
    spread_channels(VECTORS, COLUMNS, layer, g, up, image, c, map + inside + c / WIDE * vector_step(layer, g), sum)
    BY_CHUNKS(layer->c_out, SPREAD_CHANNELS)
}

/* Some channels; a repeated pixel's gradient is the sum of its four copies'. */
INLINE void gradient_channels(int activation, int vectors, int64_t columns, const Layer *layer, const float *x,
                              const float *scale, const float *shift, const float *center, const float *gradient,
                              float *d, float *sum, float *product)
{
    int64_t channels = layer->c_in, height = layer->height, width = layer->width, repeat = layer->repeat;
    int64_t line = width * repeat * channels;
    vector scales[CHUNK], shifts[CHUNK], centers[CHUNK], total[CHUNK] = {0}, products[CHUNK] = {0};
    for (int v = 0; v < vectors; v++) {
        scales[v] = scale ? load_some(scale + v * WIDE, columns) : (vector){0} + 1.0f;
        shifts[v] = scale ? load_some(shift + v * WIDE, columns) : (vector){0};
        centers[v] = scale ? load_some(center + v * WIDE, columns) : (vector){0};
    }
    for (int64_t row = 0; row < height; row++)
        for (int64_t column = 0; column < width; column++, x += channels, d += channels)
            for (int v = 0; v < vectors; v++) {
                const float *from = gradient + (row * line + column * channels) * repeat + v * WIDE;
                fetch(x + AHEAD * channels + v * WIDE);
                vector value = load_some(x + v * WIDE, columns), upstream = load_some(from, columns);
                if (repeat == 2)
                    upstream = (upstream + load_some(from + channels, columns))
                        + (load_some(from + line, columns) + load_some(from + line + channels, columns));
                upstream *= slope(value * scales[v] + shifts[v], activation);
                store_some(d + v * WIDE, upstream, columns);
                total[v] += upstream;
                products[v] += upstream * (value - centers[v]);
            }
    for (int v = 0; v < vectors; v++) {
        store_some(sum + v * WIDE, load_some(sum + v * WIDE, columns) + total[v], columns);
        store_some(product + v * WIDE, load_some(product + v * WIDE, columns) + products[v], columns);
    }
}

INLINE void gradient_activated(int activation, const Layer *layer, const float *x, const float *scale,
                               const float *shift, const float *center, const float *gradient, float *d, float *sum,
                               float *product)
{
#define GRADIENT(VECTORS, COLUMNS)                                                                                     \
    gradient_channels(activation, VECTORS, COLUMNS, layer, x + c, from_channel(scale, c), from_channel(shift, c),      \
                      from_channel(center, c), gradient + c, d + c, sum + c, product + c)
    BY_CHUNKS(layer->c_in, GRADIENT)
}

void normalised_gradient(const Layer *layer, const float *x, const float *scale, const float *shift,
                         const float *center, const float *gradient, float *d, float *sum, float *product)
{
#define GRADIENT_ACTIVATED(ACTIVATION)                                                                                 \
    gradient_activated(ACTIVATION, layer, x, scale, shift, center, gradient, d, sum, product)
    BY_ACTIVATION(layer->activation, GRADIENT_ACTIVATED)
}

/* Some channels. */
INLINE void sum_channels(int vectors, int64_t columns, const float *map, int64_t pixels, int64_t channels, float *sum)
{
    vector total[CHUNK] = {0};
    for (int64_t at = 0; at < pixels * channels; at += channels)
        for (int v = 0; v < vectors; v++) total[v] += load_some(map + at + v * WIDE, columns);
    for (int v = 0; v < vectors; v++)
        store_some(sum + v * WIDE, load_some(sum + v * WIDE, columns) + total[v], columns);
}

void sum_pixels(const float *map, int64_t pixels, int64_t channels, float *sum)
{
#define SUM_CHANNELS(VECTORS, COLUMNS) sum_channels(VECTORS, COLUMNS, map + c, pixels, channels, sum + c)
    BY_CHUNKS(channels, SUM_CHANNELS)
}
