/* Weight normalisation and spectral norms of all convolutions of a model at once; each weight W is (rows, columns), one
 * row per output channel. The reference is `weight_norm` and `spectral_norms` in plain PyTorch. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16 /* sums kept apart, so that they fill vectors and lose few digits */

/* One weight: its values, its rows' logarithmic norms, and where results go; unused pointers are null.
 * Spectral norms use `norm` for the left vector u, `out` for the right vector v and `d_log_norm` for sigma. */
typedef struct {
    const float *weight, *log_norm, *gradient;
    float *out, *norm, *d_log_norm;
    int64_t rows, columns;
} Weight;

static float dot(const float *a, const float *b, int64_t n)
{
    float sum[LANES] = {0}, total = 0;
    int64_t at = 0;
    for (; at + LANES <= n; at += LANES)
        for (int i = 0; i < LANES; i++) sum[i] += a[at + i] * b[at + i];
    for (; at < n; at++) total += a[at] * b[at];
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total;
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

/* Gradients of W (out) and of log_norm from `gradient`, that of the normalised weight. */
void vaebench_weight_norm_backward(const Weight *weights, int64_t count, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++) {
        const Weight *w = weights + at;
        for (int64_t row = 0; row < w->rows; row++) {
            const float *from = w->weight + row * w->columns, *gradient = w->gradient + row * w->columns;
            float *out = w->out + row * w->columns, norm = w->norm[row];
            float scale = expf(w->log_norm[row]) / (norm + floor), along = scale * dot(gradient, from, w->columns);
            float pull = norm > 0.0f ? along / (norm * (norm + floor)) : 0.0f; /* of the factor 1 / (|row| + floor) */
            w->d_log_norm[row] = along;
            for (int64_t i = 0; i < w->columns; i++) out[i] = scale * gradient[i] - pull * from[i];
        }
    }
}

static void normalise(float *vector, int64_t n, float floor)
{
    float norm = sqrtf(dot(vector, vector, n)), inverse = 1.0f / (norm > floor ? norm : floor);
    for (int64_t i = 0; i < n; i++) vector[i] *= inverse;
}

/* v (columns) = W^T u. */
static void right_vector(const Weight *w, const float *u, float *v)
{
    memset(v, 0, (size_t)w->columns * sizeof(float));
    for (int64_t row = 0; row < w->rows; row++)
        for (int64_t i = 0; i < w->columns; i++) v[i] += u[row] * w->weight[row * w->columns + i];
}

/* Power iteration from the left vectors u, which are moved; v, and sigma = u^T W v. */
void vaebench_spectral_norms(const Weight *weights, int64_t count, int64_t rounds, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++) {
        const Weight *w = weights + at;
        float *u = w->norm, *v = w->out, sigma = 0;
        for (int64_t round = 0; round < rounds; round++) {
            right_vector(w, u, v);
            normalise(v, w->columns, floor);
            for (int64_t row = 0; row < w->rows; row++) u[row] = dot(w->weight + row * w->columns, v, w->columns);
            normalise(u, w->rows, floor);
        }
        for (int64_t row = 0; row < w->rows; row++)
            sigma += u[row] * dot(w->weight + row * w->columns, v, w->columns);
        *w->d_log_norm = sigma;
    }
}
