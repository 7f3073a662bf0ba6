/* Dense convolutions as matrix products in registers: a tile of TILE output pixels by a panel of output channels.
 *
 * The patch of an output pixel, kernel^2 channels long, is a row of the left matrix; packed weights are the right
 * one. Where neighbouring tiles' patches lie at equal distances they are read from the map in place, else gathered
 * first. */

#include "dense.h"

#include "scratch.h"
#include "transpose.h"
#include "vector.h"

#define MOST_TAPS 169 /* 13 x 13, the largest kernel */
#define MOST_VECTORS 3 /* of a panel */
#define STRIP 96      /* output pixels that meet all panels while their patches are in the cache */

/* Where the values of a patch lie from its first one on: `count` runs of `length` floats. */
typedef struct {
    int64_t count, length, offset[MOST_TAPS];
} Runs;

/* A row of the kernel is one run where its pixels lie side by side. */
static Runs runs_of(const Geometry *g)
{
    int whole_rows = g->dilation == 1 && g->pixel == g->channels;
    int64_t per_row = whole_rows ? 1 : g->kernel;
    Runs runs = {g->kernel * per_row, g->channels * (whole_rows ? g->kernel : 1), {0}};
    for (int64_t run = 0; run < runs.count; run++)
        runs.offset[run] = (run / per_row * g->width + run % per_row) * g->dilation * g->pixel;
    return runs;
}

/* Some tiles by a panel of `vectors`: out (rows, columns) = start + patches times panel [times factor]
 * [+ base], which lie as `out`; patch r of a tile starts at a + r row. */
INLINE void product(int vectors, int tiles, const float *const *a, int64_t row, const Runs *runs, const float *panel,
                    const float *start, const Epilogue *epilogue, int64_t at, float *out, int64_t out_row, int rows,
                    int columns)
{
    const float *factor = epilogue->factor ? epilogue->factor + at : NULL;
    const float *base = epilogue->base ? epilogue->base + at : NULL;
    vector sum[MOST_TILES * TILE][MOST_VECTORS];
    for (int r = 0; r < tiles * TILE; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = load(start + v * WIDE);
    for (int64_t run = 0; run < runs->count; run++) {
        const float *from[MOST_TILES];
        for (int t = 0; t < tiles; t++) from[t] = a[t] + runs->offset[run];
        for (int64_t i = 0; i < runs->length; i++, panel += vectors * WIDE) {
            vector right[MOST_VECTORS];
            for (int v = 0; v < vectors; v++) right[v] = load(panel + v * WIDE);
            _Pragma("GCC unroll 16") for (int r = 0; r < tiles * TILE; r++)
                for (int v = 0; v < vectors; v++) sum[r][v] += from[r / TILE][r % TILE * row + i] * right[v];
        }
    }
    if (rows == tiles * TILE && columns == vectors * WIDE) {
        for (int r = 0; r < tiles * TILE; r++)
            for (int v = 0; v < vectors; v++) {
                if (factor) sum[r][v] *= load(factor + r * out_row + v * WIDE);
                if (base) sum[r][v] += load(base + r * out_row + v * WIDE);
                store(out + r * out_row + v * WIDE, sum[r][v]);
            }
        return;
    }
    _Pragma("GCC unroll 16") for (int r = 0; r < tiles * TILE; r++)
        for (int v = 0; v < vectors; v++)
            if (r < rows && v * WIDE < columns) {
                if (factor) sum[r][v] *= load_some(factor + r * out_row + v * WIDE, columns - v * WIDE);
                if (base) sum[r][v] += load_some(base + r * out_row + v * WIDE, columns - v * WIDE);
                store_some(out + r * out_row + v * WIDE, sum[r][v], columns - v * WIDE);
            }
}

/* TILE values of a patch by a panel of the gradient: out (rows, spread pixel) += sum over output pixels of their
 * products, with the values from `a` on and the gradients from `b` on. */
INLINE void outer(int vectors, int tiles, const Geometry *g, int64_t images, const float *a, const Geometry *spread,
                  const float *b, float *out, int64_t rows)
{
    vector sum[MOST_TILES * TILE][MOST_VECTORS] = {0};
    int64_t left_step = g->stride * g->pixel, right_step = g->stride * spread->pixel;
    int64_t left_line = g->stride * g->width * g->pixel, right_line = g->stride * spread->width * spread->pixel;
    for (int64_t image = 0; image < images; image++, a += g->height * g->width * g->pixel,
                 b += spread->height * spread->width * spread->pixel)
        for (int64_t y = 0; y < g->out_height; y++) {
            const float *left = a + y * left_line, *right = b + y * right_line;
            for (int64_t x = 0; x < g->out_width; x++, left += left_step, right += right_step) {
                vector panel[MOST_VECTORS];
                for (int v = 0; v < vectors; v++) panel[v] = load(right + v * WIDE);
                _Pragma("GCC unroll 16") for (int r = 0; r < tiles * TILE; r++)
                    for (int v = 0; v < vectors; v++) sum[r][v] += left[r] * panel[v];
            }
        }
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            float *at = out + r * spread->pixel + v * WIDE;
            store(at, load(at) + sum[r][v]);
        }
}

/* A function of its own for each width of a panel, so that its sums are registers. */
typedef void Product(const float *const *, int64_t, const Runs *, const float *, const float *, const Epilogue *,
                     int64_t, float *, int64_t, int, int);
typedef void Outer(const Geometry *, int64_t, const float *, const Geometry *, const float *, float *, int64_t);

#define OF_WIDTH(VECTORS, TILES)                                                                                       \
    static void product_##VECTORS(const float *const *a, int64_t row, const Runs *runs, const float *panel,            \
                                  const float *start, const Epilogue *epilogue, int64_t at, float *out,                \
                                  int64_t out_row, int rows, int columns)                                              \
    {                                                                                                                  \
        product(VECTORS, TILES, a, row, runs, panel, start, epilogue, at, out, out_row, rows, columns);                \
    }                                                                                                                  \
    static void outer_##VECTORS(const Geometry *g, int64_t images, const float *a, const Geometry *spread,             \
                                const float *b, float *out, int64_t rows)                                              \
    {                                                                                                                  \
        outer(VECTORS, TILES, g, images, a, spread, b, out, rows);                                                     \
    }
OF_WIDTH(1, TILES_OF_ONE)
OF_WIDTH(2, TILES_OF_TWO)
OF_WIDTH(3, TILES_OF_THREE)
static Product *const products[] = {product_1, product_2, product_3};
static Outer *const outers[] = {outer_1, outer_2, outer_3};

/* Rows that the functions of a width take at a time. */
static int64_t rows_at_once(int64_t panel)
{
    int64_t tiles[] = {TILES_OF_ONE, TILES_OF_TWO, TILES_OF_THREE};
    return tiles[panel / WIDE - 1] * TILE;
}

/* Copies the patches of `rows` output pixels from `first` on into (rows, kernel^2 channels). */
static void gather(const Geometry *g, const Runs *runs, const float *map, int64_t first, int64_t rows, float *out)
{
    int64_t image = g->height * g->width, out_pixels = g->out_height * g->out_width;
    for (int64_t at = first; at < first + rows; at++) {
        int64_t y = at % out_pixels / g->out_width, x = at % g->out_width;
        const float *from = map + (at / out_pixels * image + (y * g->width + x) * g->stride) * g->pixel;
        for (int64_t run = 0; run < runs->count; run++, out += runs->length)
            for (int64_t i = 0; i < runs->length; i += WIDE)
                store_some(out + i, load_some(from + runs->offset[run] + i, runs->length - i), runs->length - i);
    }
}

/* The first patches of so many tiles from output pixel `first` on, counted over all maps. Tiles that cross the end of a
 * line are those of pointwise convolutions, whose maps have no borders: places are the same if x runs on. */
static void find_patches(const Geometry *g, const float *map, int64_t first, int64_t tiles, const float **tile)
{
    int64_t line = g->stride * g->width * g->pixel, image = first / g->out_width / g->out_height;
    int64_t y = first / g->out_width % g->out_height, x = first % g->out_width;
    for (int64_t t = 0; t < tiles; t++, x += TILE) {
        if (x >= g->out_width) x -= g->out_width, y++;
        if (y == g->out_height) y = 0, image++;
        tile[t] = map + image * g->height * g->width * g->pixel + y * line + x * g->stride * g->pixel;
    }
}

void convolve_dense(const Geometry *g, int64_t images, const float *map, const float *packed, const float *start,
                    const Epilogue *epilogue, int64_t n, float *out)
{
    Runs in_map = runs_of(g);
    int64_t depth = in_map.count * in_map.length, panel = panel_width(n), total = images * g->out_height * g->out_width;
    Runs gathered = {1, depth, {0}};
    int in_place = g->out_width % TILE == 0 || (g->kernel == 1 && g->stride == 1);
    const Runs *runs = in_place ? &in_map : &gathered;
    int64_t step = rows_at_once(panel), row = in_place ? g->stride * g->pixel : depth;
    float *patches = in_place ? NULL : scratch(PATCHES, (STRIP + TILE) * depth);
    for (int64_t first = 0; first < total; first += STRIP) {
        int64_t rows = total - first < STRIP ? total - first : STRIP;
        const float *tile[STRIP / TILE + MOST_TILES];
        if (!in_place) gather(g, &in_map, map, first, rows, patches);
        int64_t tiles = (rows + TILE - 1) / TILE;
        if (in_place) find_patches(g, map, first, tiles, tile);
        for (int64_t t = 0; t < tiles && !in_place; t++) tile[t] = patches + t * TILE * depth;
        for (int64_t t = tiles; t < tiles + MOST_TILES; t++) tile[t] = tile[t - 1]; /* read in vain */
        for (int64_t column = 0; column < n; column += panel) {
            int columns = (int)(n - column < panel ? n - column : panel);
            for (int64_t at = 0; at < rows; at += step)
                products[panel / WIDE - 1](tile + at / TILE, row, runs, packed + column * depth, start + column,
                                           epilogue, (first + at) * n + column, out + (first + at) * n + column, n,
                                           (int)(rows - at < step ? rows - at : step), columns);
        }
    }
}

void weight_gradient_dense(const Geometry *g, int64_t images, const float *map, const Geometry *spread,
                           const float *gradient, float *out)
{
    Runs runs = runs_of(g);
    int64_t row = spread->pixel, panel = panel_width(row), step = rows_at_once(panel);
    for (int64_t run = 0; run < runs.count; run++)
        for (int64_t i = 0; i < runs.length; i += step)
            for (int64_t column = 0; column < row; column += panel)
                outers[panel / WIDE - 1](g, images, map + runs.offset[run] + i, spread, gradient + column,
                                         out + (run * runs.length + i) * row + column,
                                         runs.length - i < step ? runs.length - i : step);
}

/* Weights as they lie are rows of k = (channel, tap), packed ones rows of (tap, channel): the place of row k there. */
INLINE int64_t place(int64_t k, int64_t taps, int64_t depth)
{
    return taps == 1 ? k : (int64_t)((uint32_t)k % (uint32_t)taps) * depth + (uint32_t)k / (uint32_t)taps;
}

/* One panel for the way there, `columns` of whose outputs exist; weights (columns, depth taps). */
static void pack_panel(const float *weight, int64_t columns, int64_t taps, int64_t depth, int64_t panel, float *out)
{
    float block[WIDE * MOST_VECTORS * WIDE] = {0};
    int64_t rows = depth * taps;
    for (int64_t first = 0; first < rows; first += WIDE) {
        int64_t some = rows - first < WIDE ? rows - first : WIDE;
        transpose(weight + first, rows, columns, some, block, panel);
        for (int64_t r = 0; r < some; r++)
            memcpy(out + place(first + r, taps, depth) * panel, block + r * panel, (size_t)panel * sizeof(float));
    }
}

/* One for the way back: weights (depth, n taps), of which the panel's `columns` stand side by side. */
static void pack_turned_panel(const float *weight, int64_t row, int64_t columns, int64_t taps, int64_t depth,
                              int64_t panel, float *out)
{
    for (int64_t d = 0; d < depth; d++, weight += row)
        for (int64_t tap = 0; tap < taps; tap++) {
            float *at = out + ((taps - 1 - tap) * depth + d) * panel;
            if (taps == 1) memcpy(at, weight, (size_t)columns * sizeof(float));
            else for (int64_t i = 0; i < columns; i++) at[i] = weight[i * taps + tap];
            for (int64_t i = columns; i < panel; i++) at[i] = 0.0f;
        }
}

void pack_dense(const Layer *layer, const float *weight, int backward, float *packed)
{
    int64_t taps = taps_of(layer), c_in = layer->c_in, c_out = layer->c_out;
    int64_t n = backward ? c_in : c_out, depth = backward ? c_out : c_in, panel = panel_width(n);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < n; first += panel) {
        int64_t columns = n - first < panel ? n - first : panel;
        float *out = packed + first * depth * taps;
        if (backward) pack_turned_panel(weight + first * taps, c_in * taps, columns, taps, depth, panel, out);
        else pack_panel(weight + first * c_in * taps, columns, taps, depth, panel, out);
    }
}

void unpack_weights(int64_t taps, int64_t depth, int64_t columns, const float *const *parts, int64_t count, int64_t row,
                  float *weight)
{
    float block[WIDE * WIDE];
    int64_t rows = depth * taps;
    for (int64_t first = 0; first < rows; first += WIDE) {
        int64_t some = rows - first < WIDE ? rows - first : WIDE;
        for (int64_t r = 0; r < some; r++) {
            int64_t at = place(first + r, taps, depth) * row;
            vector sum = load(parts[0] + at);
            for (int64_t part = 1; part < count; part++) sum += load(parts[part] + at);
            store(block + r * WIDE, sum);
        }
        transpose(block, WIDE, some, columns, weight + first, rows);
    }
}
