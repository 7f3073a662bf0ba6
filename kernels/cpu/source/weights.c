/* Weight normalisation and spectral norms of all convolutions of a model at once; each weight W is (rows, columns), one
 * row per output channel. The reference is `weight_norm` and `spectral_norms` in plain PyTorch. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "scratch.h"
#include "vector.h"

#define LANES 16 /* sums kept apart, so that they fill vectors and lose few digits */
#define VECTORS (LANES / WIDE)
#define TOGETHER 4 /* rows that are read together: so many sums grow at the same time */

/* One weight: its values, its rows' logarithmic norms, and where results go; unused pointers are null. If its spectral
 * norm was taken, that norm's vectors u (left) and v (right), and its gradient. */
typedef struct {
    const float *weight, *log_norm, *gradient;
    float *out, *norm, *d_log_norm;
    const float *left, *right, *d_spectral;
    int64_t rows, columns;
} Weight;

/* One weight, its left vector u, that vector kept for the gradient, its right vector v, and u^T W v with its gradient. */
typedef struct {
    const float *weight;
    float *left, *kept, *right, *sigma, *gradient;
    int64_t rows, columns;
} Matrix;

/* out (count) = rows (count, n) times b. */
INLINE void dots(const float *rows, const float *b, int64_t n, const int count, float *out)
{
    vector sum[TOGETHER][VECTORS] = {{{0}}};
    int64_t at = 0;
    for (; at + LANES <= n; at += LANES)
        for (int row = 0; row < count; row++)
            for (int i = 0; i < VECTORS; i++)
                sum[row][i] += load(rows + row * n + at + i * WIDE) * load(b + at + i * WIDE);
    for (int row = 0; row < count; row++) {
        float total = 0, lane[LANES];
        memcpy(lane, sum[row], sizeof lane);
        for (int64_t left = at; left < n; left++) total += rows[row * n + left] * b[left];
        for (int i = 0; i < LANES; i++) total += lane[i];
        out[row] = total;
    }
}

static float dot(const float *a, const float *b, int64_t n)
{
    float out;
    dots(a, b, n, 1, &out);
    return out;
}

/* out = W e^log_norm / (|row| + floor); keeps |row| in norm. */
void vaebench_weight_norm(const Weight *weights, int64_t count, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++) {
        const Weight *w = weights + at;
        for (int64_t row = 0; row < w->rows; row++) {
            const float *from = w->weight + row * w->columns;
            float *out = w->out + row * w->columns;
            float norm = sqrtf(dot(from, from, w->columns)), scale = expf(w->log_norm[row]) / (norm + floor);
            w->norm[row] = norm;
            for (int64_t i = 0; i < w->columns; i++) out[i] = from[i] * scale;
        }
    }
}

/* A row of `gradient`, and in `room` what the spectral norm adds to it: a product that is rounded before it is added. */
static const float *with_spectral(const Weight *w, int64_t row, const float *gradient, float *restrict room)
{
    if (!w->left) return gradient;
    float scale = w->left[row] * *w->d_spectral;
    for (int64_t i = 0; i < w->columns; i++) room[i] = scale * w->right[i];
    for (int64_t i = 0; i < w->columns; i++) room[i] += gradient[i];
    return room;
}

/* Gradients of W (out) and of log_norm from `gradient`, that of the normalised weight, and that of its spectral norm. */
void vaebench_weight_norm_backward(const Weight *weights, int64_t count, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++) {
        const Weight *w = weights + at;
        float *room = scratch(SUMS, w->columns);
        for (int64_t row = 0; row < w->rows; row++) {
            const float *from = w->weight + row * w->columns;
            const float *gradient = with_spectral(w, row, w->gradient + row * w->columns, room);
            float *out = w->out + row * w->columns, norm = w->norm[row];
            float scale = expf(w->log_norm[row]) / (norm + floor), along = scale * dot(gradient, from, w->columns);
            float pull = norm > 0.0f ? along / (norm * (norm + floor)) : 0.0f; /* of the factor 1 / (|row| + floor) */
            w->d_log_norm[row] = along;
            for (int64_t i = 0; i < w->columns; i++) out[i] = scale * gradient[i] - pull * from[i];
        }
    }
}

static float inverse_norm(const float *values, int64_t n, float floor)
{
    float norm = sqrtf(dot(values, values, n));
    return 1.0f / (norm > floor ? norm : floor);
}

/* v (columns) = W^T u, normalised. */
static void right_vector(const Matrix *m, const float *restrict u, float *restrict v, float floor)
{
    int64_t n = m->columns, row = 0;
    const float *restrict w = m->weight;
    memset(v, 0, (size_t)n * sizeof(float));
    for (; row + TOGETHER <= m->rows; row += TOGETHER, w += TOGETHER * n)
        for (int64_t i = 0; i < n; i++)
            for (int k = 0; k < TOGETHER; k++) v[i] += u[row + k] * w[k * n + i];
    for (; row < m->rows; row++, w += n)
        for (int64_t i = 0; i < n; i++) v[i] += u[row] * w[i];
    float inverse = inverse_norm(v, n, floor);
    for (int64_t i = 0; i < n; i++) v[i] *= inverse;
}

/* product (rows) = W v; u is that, normalised. */
static void left_vector(const Matrix *m, const float *v, float *product, float *u, float floor)
{
    int64_t n = m->columns, row = 0;
    for (; row + TOGETHER <= m->rows; row += TOGETHER) dots(m->weight + row * n, v, n, TOGETHER, product + row);
    for (; row < m->rows; row++) product[row] = dot(m->weight + row * n, v, n);
    float inverse = inverse_norm(product, m->rows, floor);
    for (row = 0; row < m->rows; row++) u[row] = product[row] * inverse;
}

/* Power iteration from the left vectors u, which are moved; v, and sigma = u^T W v. */
void vaebench_spectral_norms(const Matrix *matrices, int64_t count, int64_t rounds, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++) {
        const Matrix *m = matrices + at;
        float *u = m->left, *product = m->kept, sigma = 0;
        for (int64_t round = 0; round < rounds; round++) {
            right_vector(m, u, m->right, floor);
            left_vector(m, m->right, product, u, floor);
        }
        for (int64_t row = 0; row < m->rows; row++) sigma = fmaf(u[row], product[row], sigma);
        *m->sigma = sigma;
        memcpy(m->kept, u, (size_t)m->rows * sizeof(float));
    }
}

/* Gradients u v^T of weights that are no normalised ones, times `upstream`. */
void vaebench_spectral_norms_backward(const Matrix *matrices, int64_t count, float upstream, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++) {
        const Matrix *m = matrices + at;
        const float *restrict v = m->right;
        float *restrict out = m->gradient;
        for (int64_t row = 0; row < m->rows; row++, out += m->columns) {
            float scale = m->kept[row] * upstream;
            for (int64_t i = 0; i < m->columns; i++) out[i] = scale * v[i];
        }
    }
}
