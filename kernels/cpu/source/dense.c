/* Dense convolutions as matrix products in registers: a tile of ROWS output pixels by a panel of output channels. */

#include "layout.h"

#define STRIP 64 /* output pixels whose patches are worked on together */

/* Where the values of a patch lie from its first one on: `count` runs of `length` floats. */
typedef struct {
    int64_t count, length, offset[TAPS];
} Runs;

static Runs runs_of(const Geometry *of)
{
    int whole_rows = of->dilation == 1 && of->pixel == of->channels;
    Runs runs = {of->kernel * (whole_rows ? 1 : of->kernel), of->channels * (whole_rows ? of->kernel : 1), {0}};
    int64_t across = whole_rows ? 1 : of->kernel;
    for (int64_t at = 0; at < runs.count; at++)
        runs.offset[at] = (at / across * of->width + at % across) * of->dilation * of->pixel;
    return runs;
}

/* Floats of a panel: three, two or one vectors, whichever pads the channels least; wider ones use the registers better. */
int64_t panel_of(int64_t channels)
{
    int64_t three = rounded(channels, 3 * WIDE) * 16, two = rounded(channels, 2 * WIDE) * 17, one = rounded(channels, WIDE) * 20;
    return (three <= two && three <= one ? 3 : two <= one ? 2 : 1) * WIDE;
}

typedef void Product(const float *, int64_t, const Runs *, const float *, const float *, float *, int64_t, int, int);

/* out (rows, columns) = start + patches times panel; patch r starts at a + r row. */
#define PRODUCT(NAME, VECTORS)                                                                                         \
    static void NAME(const float *a, int64_t row, const Runs *runs, const float *panel, const float *start,            \
                     float *out, int64_t out_row, int rows, int columns)                                               \
    {                                                                                                                  \
        vector sum[ROWS][VECTORS];                                                                                     \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int v = 0; v < VECTORS; v++) sum[r][v] = load(start + v * WIDE);                                      \
        for (int64_t run = 0; run < runs->count; run++) {                                                              \
            const float *from = a + runs->offset[run];                                                                 \
            for (int64_t i = 0; i < runs->length; i++, panel += VECTORS * WIDE) {                                      \
                vector right[VECTORS];                                                                                 \
                for (int v = 0; v < VECTORS; v++) right[v] = load(panel + v * WIDE);                                   \
                _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                 \
                    for (int v = 0; v < VECTORS; v++) sum[r][v] += from[r * row + i] * right[v];                       \
            }                                                                                                          \
        }                                                                                                              \
        if (rows == ROWS && columns == VECTORS * WIDE) {                                                               \
            for (int r = 0; r < ROWS; r++)                                                                             \
                for (int v = 0; v < VECTORS; v++) store(out + r * out_row + v * WIDE, sum[r][v]);                      \
            return;                                                                                                    \
        }                                                                                                              \
        float kept[ROWS][VECTORS * WIDE];                                                                              \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int v = 0; v < VECTORS; v++) store(kept[r] + v * WIDE, sum[r][v]);                                    \
        for (int r = 0; r < rows; r++) memcpy(out + r * out_row, kept[r], (size_t)columns * sizeof(float));            \
    }
PRODUCT(product_1, 1)
PRODUCT(product_2, 2)
PRODUCT(product_3, 3)
static Product *const products[] = {product_1, product_2, product_3};

typedef void Outer(const Geometry *, int64_t, const float *, const Geometry *, const float *, float *, int64_t);

/* out (rows, spread pixel) += sum over output pixels of the map's values, from `a` on, times the gradient's panel. */
#define OUTER(NAME, VECTORS)                                                                                           \
    static void NAME(const Geometry *of, int64_t images, const float *a, const Geometry *spread, const float *b,       \
                     float *out, int64_t rows)                                                                         \
    {                                                                                                                  \
        vector sum[ROWS][VECTORS] = {0};                                                                               \
        int64_t left_step = of->stride * of->pixel, right_step = of->stride * spread->pixel;                           \
        for (int64_t line = 0; line < images * of->out_height; line++) {                                               \
            int64_t image = line / of->out_height, top = line % of->out_height * of->stride;                           \
            const float *left = a + (image * of->height + top) * of->width * of->pixel;                                \
            const float *right = b + (image * spread->height + top) * spread->width * spread->pixel;                   \
            for (int64_t x = 0; x < of->out_width; x++, left += left_step, right += right_step) {                      \
                vector panel[VECTORS];                                                                                 \
                for (int v = 0; v < VECTORS; v++) panel[v] = load(right + v * WIDE);                                   \
                _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                 \
                    for (int v = 0; v < VECTORS; v++) sum[r][v] += left[r] * panel[v];                                 \
            }                                                                                                          \
        }                                                                                                              \
        for (int64_t r = 0; r < rows; r++)                                                                             \
            for (int v = 0; v < VECTORS; v++) {                                                                        \
                float *at = out + r * spread->pixel + v * WIDE;                                                        \
                store(at, load(at) + sum[r][v]);                                                                       \
            }                                                                                                          \
    }
OUTER(outer_1, 1)
OUTER(outer_2, 2)
OUTER(outer_3, 3)
static Outer *const outers[] = {outer_1, outer_2, outer_3};

/* Copies the patches of `rows` output pixels from `first` on into (rows, kernel^2 channels). */
static void gather(const Geometry *of, const Runs *runs, const float *map, int64_t first, int64_t rows, float *out)
{
    int64_t image = of->height * of->width, plane = of->out_height * of->out_width;
    for (int64_t at = first; at < first + rows; at++) {
        int64_t y = at % plane / of->out_width, x = at % of->out_width;
        const float *from = map + (at / plane * image + (y * of->width + x) * of->stride) * of->pixel;
        for (int64_t run = 0; run < runs->count; run++, out += runs->length)
            memcpy(out, from + runs->offset[run], (size_t)runs->length * sizeof(float));
    }
}

/* out (pixels of all maps, n) = start + convolution of `images` maps with weights packed by pack_products; `start` has
 * room for whole panels. Up to ROWS pixels after the last map are read and thrown away. */
void convolve(const Geometry *of, int64_t images, const float *map, const float *packed, const float *start, int64_t n,
              float *out)
{
    Runs runs = runs_of(of), whole = {1, runs.count * runs.length, {0}};
    int64_t panel = panel_of(n);
    int direct = of->out_width % ROWS == 0 || (of->kernel == 1 && of->stride == 1);
    int64_t plane = of->out_height * of->out_width, total = images * plane;
    float *patches = direct ? NULL : scratch(PATCHES, (STRIP + ROWS) * whole.length);
    for (int64_t first = 0; first < total; first += STRIP) {
        int64_t rows = total - first < STRIP ? total - first : STRIP;
        const float *block[STRIP / ROWS];
        if (!direct) gather(of, &runs, map, first, rows, patches);
        for (int64_t at = 0; at < rows; at += ROWS) {
            int64_t pixel = first + at, image = pixel / plane, y = pixel % plane / of->out_width, x = pixel % of->out_width;
            int64_t place = (image * of->height + y * of->stride) * of->width + x * of->stride;
            block[at / ROWS] = direct ? map + place * of->pixel : patches + at * whole.length;
        }
        int64_t row = direct ? of->stride * of->pixel : whole.length;
        for (int64_t column = 0; column < n; column += panel) {
            int columns = (int)(n - column < panel ? n - column : panel);
            for (int64_t at = 0; at < rows; at += ROWS)
                products[panel / WIDE - 1](block[at / ROWS], row, direct ? &runs : &whole, packed + column * whole.length,
                                           start + column, out + (first + at) * n + column, n,
                                           rows - at < ROWS ? (int)(rows - at) : ROWS, columns);
        }
    }
}

/* out (kernel^2 channels, spread pixel) += gradient of the weights. The gradient of output pixel (y, x) lies at (y, x)
 * times the stride in the spread maps, counted from `gradient` on; their pixels are whole panels. */
void weight_gradient(const Geometry *of, int64_t images, const float *map, const Geometry *spread, const float *gradient,
                     float *out)
{
    Runs runs = runs_of(of);
    int64_t panel = panel_of(spread->pixel), row = spread->pixel;
    for (int64_t run = 0; run < runs.count; run++)
        for (int64_t i = 0; i < runs.length; i += ROWS)
            for (int64_t column = 0; column < row; column += panel)
                outers[panel / WIDE - 1](of, images, map + runs.offset[run] + i, spread, gradient + column,
                                         out + (run * runs.length + i) * row + column,
                                         runs.length - i < ROWS ? runs.length - i : ROWS);
}

/* Weights (c_out, c_in, kernel, kernel) as panels (kernel^2 c, panel). Backward: for the convolution of the output's
 * gradient that gives the input's, with c_in and c_out exchanged and the kernel turned. */
void pack_products(const float *weight, int64_t c_out, int64_t c_in, int kernel, int backward, float *packed)
{
    int64_t taps = (int64_t)kernel * kernel, n = backward ? c_in : c_out, depth = backward ? c_out : c_in;
    int64_t panel = panel_of(n), from_n = backward ? taps : c_in * taps, from_depth = backward ? c_in * taps : taps;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < n; first += panel) {
        float *out = packed + first * depth * taps;
        for (int64_t tap = 0; tap < taps; tap++) {
            const float *at = weight + first * from_n + (backward ? taps - 1 - tap : tap);
            for (int64_t d = 0; d < depth; d++, out += panel)
                for (int64_t i = 0; i < panel; i++) out[i] = first + i < n ? at[i * from_n + d * from_depth] : 0.0f;
        }
    }
}
