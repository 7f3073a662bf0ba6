/* Maps between the order in which latents draw their noise, channel by channel, and the one in which networks keep
 * them, pixel by pixel. */

#include "transpose.h"

#include "vector.h"

/* out (columns, rows) from x (rows, columns) of up to WIDE rows and columns, whose rows lie `step` and `out_step`
 * floats apart; read and written row by row, as channels may lie a multiple of the cache's size apart. */
INLINE void transpose_some(const float *x, int64_t step, int64_t rows, int64_t columns, float *out, int64_t out_step)
{
    float block[WIDE][WIDE];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) block[c][r] = x[r * step + c];
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++) out[c * out_step + r] = block[c][r];
}

#if defined(__GNUC__) && !defined(__clang__)
/* Of `low` and `high`, what is to stand in the lower and in the upper of two rows `distance` apart: blocks of as many
 * lanes change places across the diagonal. */
INLINE void exchange(vector *low, vector *high, int distance)
{
    int_vector to_low, to_high;
    for (int lane = 0; lane < WIDE; lane++) {
        to_low[lane] = lane & distance ? lane - distance + WIDE : lane;
        to_high[lane] = lane & distance ? lane + WIDE : lane + distance;
    }
    vector of_low = __builtin_shuffle(*low, *high, to_low);
    *high = __builtin_shuffle(*low, *high, to_high);
    *low = of_low;
}

/* The same of WIDE rows and columns, in registers. */
static void transpose_block(const float *x, int64_t step, float *out, int64_t out_step)
{
    vector row[WIDE];
    _Pragma("GCC unroll 16") for (int r = 0; r < WIDE; r++) row[r] = load(x + r * step);
    _Pragma("GCC unroll 4") for (int distance = 1; distance < WIDE; distance *= 2)
        _Pragma("GCC unroll 16") for (int r = 0; r < WIDE; r++)
            if (!(r & distance)) exchange(row + r, row + r + distance, distance);
    _Pragma("GCC unroll 16") for (int r = 0; r < WIDE; r++) store(out + r * out_step, row[r]);
}
#else
static void transpose_block(const float *x, int64_t step, float *out, int64_t out_step)
{
    transpose_some(x, step, WIDE, WIDE, out, out_step);
}
#endif

/* Whole blocks get loops of their own. */
void transpose(const float *x, int64_t step, int64_t rows, int64_t columns, float *out, int64_t out_step)
{
    for (int64_t r = 0; r < rows; r += WIDE)
        for (int64_t c = 0; c < columns; c += WIDE) {
            int64_t high = rows - r < WIDE ? rows - r : WIDE, wide = columns - c < WIDE ? columns - c : WIDE;
            const float *from = x + r * step + c;
            float *to = out + c * out_step + r;
            if (high == WIDE && wide == WIDE) transpose_block(from, step, to, out_step);
            else transpose_some(from, step, high, wide, to, out_step);
        }
}

/* out (images, channels, pixels) from x, whose pixels lie `step` and images `row` floats apart. */
void vaebench_to_planes(const float *x, int64_t row, int64_t step, float *out, int64_t images, int64_t pixels,
                        int64_t channels, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; image++)
        transpose(x + image * row, step, pixels, channels, out + image * pixels * channels, pixels);
}

/* out (images, pixels, channels) from x (images, channels, pixels). */
void vaebench_to_pixels(const float *x, float *out, int64_t images, int64_t pixels, int64_t channels, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; image++)
        transpose(x + image * pixels * channels, pixels, channels, pixels, out + image * pixels * channels, channels);
}
