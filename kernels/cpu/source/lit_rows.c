/* Linear layers over images that are mostly zero: only the rows of the weights whose pixels are lit are read. The
 * reference is `image_linear`. */

#include <stdint.h>
#include <string.h>

#define ROWS 4 /* rows added to a sum at a time */

/* Add `count` (at most ROWS) rows times their factors to `sum` (width). */
static inline void add_rows(float *restrict sum, const float *const *rows, const float *factors, int count,
                            int64_t width)
{
    if (count == ROWS) {
        const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
        for (int64_t k = 0; k < width; k++)
            sum[k] += (factors[0] * a[k] + factors[1] * b[k]) + (factors[2] * c[k] + factors[3] * d[k]);
        return;
    }
    for (int j = 0; j < count; j++)
        for (int64_t k = 0; k < width; k++) sum[k] += factors[j] * rows[j][k];
}

/* sum (width) += the values x (size, `step` apart) times rows (size, width); rows of zeros are not read. */
static void add_lit(float *sum, const float *x, int64_t step, const float *rows, int64_t size, int64_t width)
{
    const float *lit[ROWS];
    float factors[ROWS];
    int found = 0;
    for (int64_t i = 0; i < size; i++) {
        if (x[i * step] == 0.0f) continue;
        lit[found] = rows + i * width;
        factors[found++] = x[i * step];
        if (found == ROWS) add_rows(sum, lit, factors, found, width), found = 0;
    }
    add_rows(sum, lit, factors, found, width);
}

/* out (images, width) = bias (width) + x (images, size) times rows (size, width). */
void vaebench_lit_rows(const float *x, const float *rows, const float *bias, float *out, int64_t images, int64_t size,
                       int64_t width, int32_t threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t image = 0; image < images; image++) {
        memcpy(out + image * width, bias, (size_t)width * sizeof(float));
        add_lit(out + image * width, x + image * size, 1, rows, size, width);
    }
}

/* out (size, width) = the transpose of x (images, size) times gradient (images, width). */
void vaebench_lit_rows_backward(const float *x, const float *gradient, float *out, int64_t images, int64_t size,
                                int64_t width, int32_t threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < size; i++) {
        memset(out + i * width, 0, (size_t)width * sizeof(float));
        add_lit(out + i * width, x + i, size, gradient, images, width);
    }
}
