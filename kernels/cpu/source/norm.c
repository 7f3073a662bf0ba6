/* Batch norm: statistics of the images, and from those a scale and a shift per channel, which the layer that reads
 * the map applies. Backward, two sums over pixels give the coefficients of a linear form (linear_form.h). The
 * reference is `torch.nn.functional.batch_norm`. */

#include "norm.h"

#include "vector.h"

/* Mean over pixels and sum of squared deviations from it of some channels, taken about the first pixel (squares of
 * large values would lose digits). */
INLINE void channel_statistics(int vectors, int64_t columns, const float *x, int64_t pixels, int64_t channels,
                               float *mean, float *squares)
{
    vector first[CHUNK], sum[CHUNK] = {0}, square[CHUNK] = {0};
    for (int v = 0; v < vectors; v++) first[v] = load_some(x + v * WIDE, columns);
    for (int64_t at = 0; at < pixels; at++, x += channels)
        for (int v = 0; v < vectors; v++) {
            vector deviation = load_some(x + v * WIDE, columns) - first[v];
            sum[v] += deviation;
            square[v] += deviation * deviation;
        }
    for (int v = 0; v < vectors; v++) {
        vector shift = sum[v] / (float)pixels;
        store_some(mean + v * WIDE, first[v] + shift, columns);
        store_some(squares + v * WIDE, square[v] - sum[v] * shift, columns);
    }
}

void image_statistics(const float *x, int64_t pixels, int64_t channels, float *mean, float *squares)
{
#define STATISTICS(VECTORS, COLUMNS)                                                                                   \
    channel_statistics(VECTORS, COLUMNS, x + c, pixels, channels, mean + c, squares + c)
    BY_CHUNKS(channels, STATISTICS)
}

void batch_statistics(const float *x, float *mean, float *squares, int64_t batch, int64_t pixels, int64_t channels,
                      int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < batch; i++)
        image_statistics(x + i * pixels * channels, pixels, channels, mean + i * channels, squares + i * channels);
}

/* Batch norm as a scale and a shift: writes mean, 1 / sqrt(variance + epsilon), scale and shift (4, channels) from the
 * images' means and sums of squared deviations, and moves the running statistics; from those alone if `mean` is null.
 * The running variance is the unbiased one of every pixel counted `repeats` times. */
void vaebench_norm(const float *mean, const float *squares, int64_t batch, int64_t pixels, int64_t channels,
                   const float *weight, const float *bias, double epsilon, double momentum, double repeats,
                   float *running_mean, float *running_variance, float *out)
{
    double n = (double)batch * (double)pixels;
    for (int64_t c = 0; c < channels; c++) {
        double center = 0, variance = 0;
        for (int64_t i = 0; i < batch && mean; i++) center += mean[i * channels + c] / (double)batch;
        for (int64_t i = 0; i < batch && mean; i++) {
            double shift = mean[i * channels + c] - center;
            variance += (squares[i * channels + c] + (double)pixels * shift * shift) / n;
        }
        if (mean && running_mean) {
            double unbiased = variance * (repeats * n / (repeats * n - 1));
            running_mean[c] = (float)((1 - momentum) * running_mean[c] + momentum * center);
            running_variance[c] = (float)((1 - momentum) * running_variance[c] + momentum * unbiased);
        }
        if (!mean) center = running_mean[c], variance = running_variance[c];
        double inverse_std = 1 / __builtin_sqrt(variance + epsilon), scale = inverse_std * (weight ? weight[c] : 1);
        out[NORM_MEAN * channels + c] = (float)center;
        out[NORM_INVERSE_STD * channels + c] = (float)inverse_std;
        out[NORM_SCALE * channels + c] = (float)scale;
        out[NORM_SHIFT * channels + c] = (float)((bias ? bias[c] : 0) - center * scale);
    }
}

/* Sums over pixels of some channels: of the gradient, and of its product with y - center. */
INLINE void sum_channels(int vectors, int64_t columns, const float *gradient, const float *y, const float *center,
                         float *sum, float *product, int64_t pixels, int64_t channels)
{
    vector mean[CHUNK], total[CHUNK] = {0}, products[CHUNK] = {0};
    for (int v = 0; v < vectors; v++) mean[v] = center ? load_some(center + v * WIDE, columns) : (vector){0};
    for (int64_t at = 0; at < pixels * channels; at += channels)
        for (int v = 0; v < vectors; v++) {
            vector value = load_some(gradient + at + v * WIDE, columns);
            total[v] += value;
            products[v] += value * (load_some(y + at + v * WIDE, columns) - mean[v]);
        }
    for (int v = 0; v < vectors; v++) {
        store_some(sum + v * WIDE, total[v], columns);
        store_some(product + v * WIDE, products[v], columns);
    }
}

void gradient_sums(const float *gradient, const float *y, const float *center, int64_t pixels, int64_t channels,
                   float *sum, float *product)
{
#define SUM(VECTORS, COLUMNS)                                                                                          \
    sum_channels(VECTORS, COLUMNS, gradient + c, y + c, center ? center + c : NULL, sum + c, product + c, pixels,      \
                 channels)
    BY_CHUNKS(channels, SUM)
}

void norm_gradient(const float *norm, const double *sums, double n, int64_t channels, float *d_weight, float *d_bias,
                   float *coefficients)
{
    for (int64_t c = 0; c < channels; c++) {
        double center = norm[NORM_MEAN * channels + c], inverse_std = norm[NORM_INVERSE_STD * channels + c];
        double scale = norm[NORM_SCALE * channels + c], sum = sums[c], product = sums[channels + c];
        double through_variance = product / n * inverse_std * inverse_std;
        d_weight[c] = (float)(product * inverse_std);
        d_bias[c] = (float)sum;
        coefficients[c] = (float)scale;
        coefficients[channels + c] = (float)(-scale * through_variance);
        coefficients[2 * channels + c] = (float)(scale * (through_variance * center - sum / n));
    }
}
