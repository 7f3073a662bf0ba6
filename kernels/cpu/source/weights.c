/* Weight normalisation and spectral norms of all convolutions of a model at once; each weight is (rows, columns). */

#include "exp_log.h"

#include <math.h>

/* One weight: its values, its rows' logarithmic norms, and where results go; unused pointers are null. */
typedef struct {
    const float *weight, *log_norm, *gradient;
    float *out, *norm, *d_log_norm;
    int64_t rows, columns;
} Weight;

static float dot(const float *a, const float *b, int64_t n)
{
    float sum[16] = {0}, total = 0;
    int64_t at = 0;
    for (; at + 16 <= n; at += 16)
        for (int i = 0; i < 16; i++) sum[i] += a[at + i] * b[at + i];
    for (; at < n; at++) total += a[at] * b[at];
    for (int i = 0; i < 16; i++) total += sum[i];
    return total;
}

/* out = weight e^log_norm / (|row| + floor); keeps |row| in norm. */
void vaebench_weight_norm(const Weight *of, int64_t count, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++)
        for (int64_t row = 0; row < of[at].rows; row++) {
            int64_t columns = of[at].columns;
            const float *from = of[at].weight + row * columns;
            float *to = of[at].out + row * columns;
            float norm = sqrtf(dot(from, from, columns)), scale = expf(of[at].log_norm[row]) / (norm + floor);
            of[at].norm[row] = norm;
            for (int64_t i = 0; i < columns; i++) to[i] = from[i] * scale;
        }
}

/* Gradients of weight (out) and of log_norm from `gradient`, that of the normalised weight. */
void vaebench_weight_norm_backward(const Weight *of, int64_t count, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++)
        for (int64_t row = 0; row < of[at].rows; row++) {
            int64_t columns = of[at].columns;
            const float *from = of[at].weight + row * columns, *gradient = of[at].gradient + row * columns;
            float *to = of[at].out + row * columns, norm = of[at].norm[row];
            float scale = expf(of[at].log_norm[row]) / (norm + floor), along = scale * dot(gradient, from, columns);
            float pull = norm > 0.0f ? along / (norm * (norm + floor)) : 0.0f;
            of[at].d_log_norm[row] = along;
            for (int64_t i = 0; i < columns; i++) to[i] = scale * gradient[i] - pull * from[i];
        }
}

static void normalise(float *vector, int64_t n, float floor)
{
    float norm = sqrtf(dot(vector, vector, n)), inverse = 1.0f / (norm > floor ? norm : floor);
    for (int64_t i = 0; i < n; i++) vector[i] *= inverse;
}

/* v (columns) = u^T W. */
static void from_left(const Weight *of, const float *u, float *v)
{
    memset(v, 0, (size_t)of->columns * sizeof(float));
    for (int64_t row = 0; row < of->rows; row++)
        for (int64_t i = 0; i < of->columns; i++) v[i] += u[row] * of->weight[row * of->columns + i];
}

/* Power iteration from the left vector u (norm), which is moved; v (out) and sigma = u^T W v (d_log_norm). */
void vaebench_spectral_norms(const Weight *of, int64_t count, int64_t rounds, float floor, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t at = 0; at < count; at++) {
        float *u = of[at].norm, *v = of[at].out;
        for (int64_t round = 0; round < rounds; round++) {
            from_left(of + at, u, v);
            normalise(v, of[at].columns, floor);
            for (int64_t row = 0; row < of[at].rows; row++)
                u[row] = dot(of[at].weight + row * of[at].columns, v, of[at].columns);
            normalise(u, of[at].rows, floor);
        }
        float sigma = 0;
        for (int64_t row = 0; row < of[at].rows; row++)
            sigma += u[row] * dot(of[at].weight + row * of[at].columns, v, of[at].columns);
        *of[at].d_log_norm = sigma;
    }
}

/* A parameter of an optimizer: value, gradient, averaged gradient and largest gradient of `count` floats, and the step
 * size with its bias correction. */
typedef struct {
    float *value;
    const float *gradient;
    float *average, *largest;
    int64_t count;
    double rate;
} Parameter;

/* One step of Adamax (Kingma & Ba 2015, algorithm 2) on all parameters, with weight decay as an L2 term. */
void vaebench_adamax(const Parameter *of, int64_t count, float beta_1, float beta_2, float epsilon, float decay,
                     int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
    for (int64_t at = 0; at < count; at++) {
        Parameter p = of[at];
        float rate = (float)p.rate;
        for (int64_t i = 0; i < p.count; i++) {
            float gradient = p.gradient[i] + decay * p.value[i];
            float kept = beta_2 * p.largest[i], size = (gradient < 0.0f ? -gradient : gradient) + epsilon;
            p.average[i] += (1.0f - beta_1) * (gradient - p.average[i]);
            p.largest[i] = kept > size ? kept : size;
            p.value[i] -= rate * (p.average[i] / p.largest[i]);
        }
    }
}
