/* The end of a residual cell, gain * gate * norm, as a scale and a shift for each channel of an image, and its way
 * back. The gate is squeeze-excitation (Hu et al. 2018): mean over pixels, linear layer, ReLU, linear layer, sigmoid.
 */

#include "gate.h"

#include "exp_log.h"
#include "norm.h"

/* Scale and shift of the norm alone. */
static float norm_scale(const End *end, int64_t c)
{
    return end->norm ? end->norm[NORM_SCALE * end->channels + c] : 1.0f;
}
static float norm_shift(const End *end, int64_t c)
{
    return end->norm ? end->norm[NORM_SHIFT * end->channels + c] : 0.0f;
}

/* The normed map's mean over pixels. */
static void pool(const End *end, const float *mean, float *pooled)
{
    for (int64_t c = 0; c < end->channels; c++) pooled[c] = mean[c] * norm_scale(end, c) + norm_shift(end, c);
}

/* out (rows) = weight (rows, columns) times x, plus bias. */
static void linear(const float *weight, const float *bias, const float *x, int64_t rows, int64_t columns, float *out)
{
    for (int64_t row = 0; row < rows; row++, weight += columns) {
        float sum = bias[row];
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < columns; i++) sum += weight[i] * x[i];
        out[row] = sum;
    }
}

/* out (columns) = x times weight (rows, columns). */
static void transposed(const float *weight, const float *x, int64_t rows, int64_t columns, float *out)
{
    for (int64_t i = 0; i < columns; i++) out[i] = 0;
    for (int64_t row = 0; row < rows; row++, weight += columns)
        for (int64_t i = 0; i < columns; i++) out[i] += x[row] * weight[i];
}

void open_gate(const End *end, const float *mean, float *units, float *gates, float *scale, float *shift)
{
    int64_t channels = end->channels, hidden = end->hidden;
    if (hidden) {
        pool(end, mean, gates); /* overwritten below */
        linear(end->gate[0], end->gate[1], gates, hidden, channels, units);
        for (int64_t i = 0; i < hidden; i++) units[i] = units[i] > 0.0f ? units[i] : 0.0f;
        linear(end->gate[2], end->gate[3], units, channels, hidden, gates);
        for (int64_t c = 0; c < channels; c++) gates[c] = 1.0f / (1.0f + exponential(-gates[c]));
    }
    for (int64_t c = 0; c < channels; c++) {
        float factor = hidden ? end->gain * gates[c] : end->gain;
        scale[c] = factor * norm_scale(end, c), shift[c] = factor * norm_shift(end, c);
    }
}

void gate_gradient(const End *end, const float *units, const float *gates, const float *sums, const float *products,
                   int64_t pixels, float *d_logits, float *d_units, float *scale, float *shift)
{
    int64_t channels = end->channels;
    for (int64_t c = 0; c < channels; c++) {
        float mean = end->norm ? end->norm[NORM_MEAN * channels + c] : 0.0f;
        float normed = norm_scale(end, c) * (mean * sums[c] + products[c]) + norm_shift(end, c) * sums[c];
        d_logits[c] = end->gain * normed * gates[c] * (1.0f - gates[c]);
        scale[c] = end->gain * gates[c];
    }
    transposed(end->gate[2], d_logits, channels, end->hidden, d_units);
    for (int64_t i = 0; i < end->hidden; i++) d_units[i] = units[i] > 0.0f ? d_units[i] : 0.0f;
    transposed(end->gate[0], d_units, end->hidden, channels, shift);
    for (int64_t c = 0; c < channels; c++) shift[c] /= (float)pixels; /* of the mean */
}

void add_gate_gradients(const End *end, const float *mean, const float *units, const float *d_logits,
                        const float *d_units, float *room, float *const *d_gate)
{
    int64_t channels = end->channels, hidden = end->hidden;
    pool(end, mean, room);
    for (int64_t i = 0; i < hidden; i++) {
        d_gate[1][i] += d_units[i];
        for (int64_t c = 0; c < channels; c++) d_gate[0][i * channels + c] += d_units[i] * room[c];
    }
    for (int64_t c = 0; c < channels; c++) {
        d_gate[3][c] += d_logits[c];
        for (int64_t i = 0; i < hidden; i++) d_gate[2][c * hidden + i] += d_logits[c] * units[i];
    }
}
