/* CPU kernels in C: the keyed noise, the Gaussian draw with its KL, and the logistic mixture. Written so that a compiler
 * turns every inner loop into vector instructions: no branches, no calls. Built and loaded by native.py;
 * kernels/reference/philox.py and kernels/reference/backend.py say what is computed. */

#include "exp_log.h"

#define LANES 64 /* pixels or counters that an inner loop works on */
#define MIN_LOG_SCALE (-7.0f)

/* Four words of Philox 4x32-10 for LANES consecutive counters. */
static void philox(uint32_t first, uint32_t sample, uint32_t group, uint64_t seed, uint32_t words[4][LANES])
{
    uint32_t *c0 = words[0], *c1 = words[1], *c2 = words[2], *c3 = words[3];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < LANES; i++) {
        c0[i] = first + (uint32_t)i;
        c1[i] = sample;
        c2[i] = group;
        c3[i] = 0;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < LANES; i++) {
            uint64_t product0 = (uint64_t)c0[i] * 0xD2511F53u, product1 = (uint64_t)c2[i] * 0xCD9E8D57u;
            c0[i] = (uint32_t)(product1 >> 32) ^ c1[i] ^ k0;
            c1[i] = (uint32_t)product1;
            c2[i] = (uint32_t)(product0 >> 32) ^ c3[i] ^ k1;
            c3[i] = (uint32_t)product0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* Two normals from each pair of words; the angle is reduced to [-pi / 4, pi / 4] in integers. */
static void box_muller(const uint32_t *radius_word, const uint32_t *angle_word, float *first, float *second)
{
    float square[LANES];
    for (int i = 0; i < LANES; i++) {
        float uniform = (float)radius_word[i] * 0x1p-32f + 0x1p-33f;
        square[i] = -2.0f * logarithm(uniform);
    }
    for (int i = 0; i < LANES; i++) {
        uint32_t quarters = (angle_word[i] + 0x20000000u) >> 30;
        float x = (float)(int32_t)(angle_word[i] - (quarters << 30)) * 1.4629180792671596e-9f;
        float q = x * x;
        float sine = x + x * q * (-1.666665494e-1f + q * (8.332178130e-3f + q * -1.951729703e-4f));
        float cosine = 1.0f - 0.5f * q + q * q * (4.166127852e-2f + q * -1.365244812e-3f);
        float horizontal = quarters & 1 ? sine : cosine, vertical = quarters & 1 ? cosine : sine;
        float radius = __builtin_sqrtf(square[i] > 0.0f ? square[i] : 0.0f);
        first[i] = radius * ((quarters + 1) & 2 ? -horizontal : horizontal);
        second[i] = radius * (quarters & 2 ? -vertical : vertical);
    }
}

/* Normals of 4 LANES latents of one sample, from latent 4 quad on. */
static void draw(uint32_t quad, int64_t sample, int64_t group, int64_t seed, float out[4 * LANES])
{
    uint32_t words[4][LANES];
    float normals[4][LANES];
    philox(quad, (uint32_t)sample, (uint32_t)group, (uint64_t)seed, words);
    box_muller(words[0], words[1], normals[0], normals[1]);
    box_muller(words[2], words[3], normals[2], normals[3]);
    for (int i = 0; i < LANES; i++)
        for (int lane = 0; lane < 4; lane++) out[4 * i + lane] = normals[lane][i];
}

/* Standard normals of `samples` images of `size` latents each, into out (samples, size). */
void vaebench_normals(float *out, int64_t seed, int64_t group, int64_t first_sample, int64_t samples, int64_t size,
                      int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++)
        for (int64_t at = 0; at < size; at += 4 * LANES) {
            float noise[4 * LANES];
            int64_t left = size - at < 4 * LANES ? size - at : 4 * LANES;
            draw((uint32_t)(at / 4), first_sample + sample, group, seed, noise);
            memcpy(out + sample * size + at, noise, (size_t)left * sizeof(float));
        }
}

/* How raw values become Gaussians: clamp 0 and floor 0 stand for none. */
typedef struct {
    float clamp, floor;
    int32_t residual;
} Form;

/* Raw mean and log scale of samples `row` floats apart; null pointers stand for zeros. */
typedef struct {
    const float *mean, *log_scale;
    int64_t row;
} Raw;

/* A Gaussian of up to 4 LANES latents, and the slopes of mean and log scale in the raw values. */
typedef struct {
    float mean[4 * LANES], scale[4 * LANES], log_scale[4 * LANES], mean_slope[4 * LANES], slope[4 * LANES];
} Gaussian;

static void soft_clamp(float *value, float *slope, float clamp, int n)
{
    for (int i = 0; i < n; i++) {
        float magnitude = value[i] < 0.0f ? -value[i] : value[i];
        float t = exponential(magnitude * (-2.0f / clamp)), inverse = 1.0f / (1.0f + t);
        float result = clamp * (1.0f - t) * inverse;
        value[i] = value[i] < 0.0f ? -result : result;
        slope[i] = 4.0f * t * inverse * inverse;
    }
}

/* The Gaussian of n latents of a sample from `at` on; `offset`, if any, holds raw values to add. */
static void read_gaussian(Raw raw, Raw offset, int64_t sample, int64_t at, Form form, int n, Gaussian *out)
{
    for (int i = 0; i < n; i++) {
        out->mean[i] = raw.mean ? raw.mean[sample * raw.row + at + i] : 0.0f;
        out->log_scale[i] = raw.mean ? raw.log_scale[sample * raw.row + at + i] : 0.0f;
        out->mean_slope[i] = out->slope[i] = 1.0f;
    }
    for (int i = 0; i < n && offset.mean; i++) {
        out->mean[i] += offset.mean[sample * offset.row + at + i];
        out->log_scale[i] += offset.log_scale[sample * offset.row + at + i];
    }
    if (form.clamp > 0.0f) {
        soft_clamp(out->mean, out->mean_slope, form.clamp, n);
        soft_clamp(out->log_scale, out->slope, form.clamp, n);
    }
    for (int i = 0; i < n; i++) out->scale[i] = exponential(out->log_scale[i]);
    if (form.floor > 0.0f)
        for (int i = 0; i < n; i++) {
            float narrow = out->scale[i];
            out->scale[i] = narrow + form.floor;
            out->slope[i] *= narrow / out->scale[i];
            out->log_scale[i] = logarithm(out->scale[i]);
        }
}

/* z (samples, size), KL and, unless null, log q(z) - log p(z) (samples), nats. Noise (samples, size) is read if `keyed` is
 * 0, else drawn and written. */
void vaebench_gaussian(Raw posterior, Raw prior, Form form, float *noise, int32_t keyed, int64_t seed, int64_t group,
                       int64_t first_sample, float *z, float *kl, float *log_ratio, int64_t samples, int64_t size,
                       int32_t threads)
{
    Raw none = {0, 0, 0};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++) {
        Gaussian q, p;
        float drawn[4 * LANES], total[4 * LANES] = {0}, ratios[4 * LANES] = {0};
        double sum = 0, ratio_sum = 0;
        for (int64_t at = 0; at < size; at += 4 * LANES) {
            int n = size - at < 4 * LANES ? (int)(size - at) : 4 * LANES;
            float *eps = noise + sample * size + at, *row = z + sample * size + at;
            if (keyed) {
                draw((uint32_t)(at / 4), first_sample + sample, group, seed, drawn);
                memcpy(eps, drawn, (size_t)n * sizeof(float));
            }
            read_gaussian(posterior, form.residual ? prior : none, sample, at, form, n, &q);
            read_gaussian(prior, none, sample, at, form, n, &p);
            for (int i = 0; i < n; i++) {
                float inverse = 1.0f / p.scale[i], shift = (q.mean[i] - p.mean[i]) * inverse, ratio = q.scale[i] * inverse;
                row[i] = q.mean[i] + q.scale[i] * eps[i];
                total[i] += 0.5f * (shift * shift + (ratio * ratio - 1.0f)) - (q.log_scale[i] - p.log_scale[i]);
            }
            for (int i = 0; i < n && log_ratio; i++) {
                float away = (row[i] - p.mean[i]) / p.scale[i];
                ratios[i] += 0.5f * (away * away - eps[i] * eps[i]) - (q.log_scale[i] - p.log_scale[i]);
            }
        }
        for (int i = 0; i < 4 * LANES; i++) sum += total[i], ratio_sum += ratios[i];
        kl[sample] = (float)sum;
        if (log_ratio) log_ratio[sample] = (float)ratio_sum;
    }
}

/* Gradients of the raw values, (samples, size) each; those of the prior are skipped if null. Upstream gradients are
 * grad_z (samples, size) and grad_kl (samples). */
void vaebench_gaussian_backward(Raw posterior, Raw prior, Form form, const float *noise, const float *grad_z,
                                const float *grad_kl, float *d_mean, float *d_log_scale, float *d_prior_mean,
                                float *d_prior_log_scale, int64_t samples, int64_t size, int32_t threads)
{
    Raw none = {0, 0, 0};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++) {
        Gaussian q, p;
        float k = grad_kl[sample];
        for (int64_t at = 0; at < size; at += 4 * LANES) {
            int n = size - at < 4 * LANES ? (int)(size - at) : 4 * LANES;
            int64_t first = sample * size + at;
            float p_mean[4 * LANES], p_log[4 * LANES];
            read_gaussian(posterior, form.residual ? prior : none, sample, at, form, n, &q);
            read_gaussian(prior, none, sample, at, form, n, &p);
            for (int i = 0; i < n; i++) {
                float inverse = 1.0f / p.scale[i], shift = (q.mean[i] - p.mean[i]) * inverse, ratio = q.scale[i] * inverse;
                float pull = k * shift * inverse, g = grad_z[first + i], d_log = k * (ratio * ratio - 1.0f);
                p_mean[i] = -pull * p.mean_slope[i];
                p_log[i] = -(k * shift * shift + d_log) * p.slope[i];
                d_mean[first + i] = (g + pull) * q.mean_slope[i];
                d_log_scale[first + i] = (g * q.scale[i] * noise[first + i] + d_log) * q.slope[i];
            }
            for (int i = 0; i < n && d_prior_mean; i++) {
                d_prior_mean[first + i] = p_mean[i] + (form.residual ? d_mean[first + i] : 0.0f);
                d_prior_log_scale[first + i] = p_log[i] + (form.residual ? d_log_scale[first + i] : 0.0f);
            }
        }
    }
}

/* One colour of one component: adds to the log probability and multiplies `factor`; writes the two gradients. */
static void colour(const float *mean, const float *log_scale, const float *shift, const float *x, float half, int lanes,
                   float *linear, float *factor, float *d_mean, float *d_log_scale)
{
    for (int i = 0; i < lanes; i++) {
        float low = log_scale[i] < MIN_LOG_SCALE ? 0.0f : 1.0f;
        float inverse = exponential(-(log_scale[i] < MIN_LOG_SCALE ? MIN_LOG_SCALE : log_scale[i]));
        float above_lowest = x[i] < half - 1.0f ? 0.0f : 1.0f, below_highest = x[i] > 1.0f - half ? 0.0f : 1.0f;
        float interior = above_lowest * below_highest;
        float centred = x[i] - mean[i] - shift[i];
        float upper = (centred + half) * inverse, lower = (centred - half) * inverse, width = 2.0f * half * inverse;
        float a = exponential(upper < 0.0f ? upper : -upper) * below_highest;
        float b = exponential(lower < 0.0f ? lower : -lower) * above_lowest;
        float shrunk = exponential(-width);
        float series = width * (1.0f - width * (0.5f - width * (0.16666667f - width * (0.041666668f - width * 0.008333334f))));
        float bin_width = (width < 0.125f ? series : 1.0f - shrunk) * interior + (1.0f - interior);
        float one_a = 1.0f + a, one_b = 1.0f + b;
        float joint = 1.0f / (one_a * one_b * bin_width);
        float tail = (upper > 0.0f ? a : below_highest) * (joint * one_b * bin_width);
        float head = (lower > 0.0f ? above_lowest : b) * (joint * one_a * bin_width);
        float narrowing = width * shrunk * (joint * one_a * one_b) * interior;
        linear[i] += (upper < 0.0f ? upper : 0.0f) * below_highest - (lower > 0.0f ? lower : 0.0f) * above_lowest;
        factor[i] *= joint * bin_width * bin_width;
        d_mean[i] = (head - tail) * inverse;
        d_log_scale[i] = (head * lower - tail * upper - narrowing) * low;
    }
}

/* tanh of LANES values: (1 - t) / (1 + t) with t = e^-2|v|. */
static void coefficients(const float *logit, int lanes, float *value)
{
    for (int i = 0; i < lanes; i++) {
        float magnitude = logit[i] < 0.0f ? -logit[i] : logit[i];
        float t = exponential(-2.0f * magnitude), tanh = (1.0f - t) / (1.0f + t);
        value[i] = logit[i] < 0.0f ? -tanh : tanh;
    }
}

/* Room for the components of LANES pixels. */
typedef struct {
    float joint[LANES], d_mean[3][LANES], d_log_scale[3][LANES], coefficient[3][LANES];
} Component;

/* Component k of up to LANES pixels from `at` on; p points to the image's parameters, `plane` apart. */
static void component(const float *p, int64_t plane, int k, int mixture, int colours, float x[3][LANES], float half,
                      int lanes, Component *out)
{
    float linear[LANES] = {0}, factor[LANES], shift[LANES] = {0};
    int per_colour = colours == 3 ? 3 : 2;
    for (int i = 0; i < lanes; i++) factor[i] = 1.0f;
    for (int c = 0; c < colours; c++) {
        const float *first = p + (mixture + c * per_colour * mixture + k) * plane;
        if (colours == 3) coefficients(first + 2 * mixture * plane, lanes, out->coefficient[c]);
    }
    for (int c = 0; c < colours; c++) {
        const float *first = p + (mixture + c * per_colour * mixture + k) * plane;
        for (int i = 0; i < lanes && c == 1; i++) shift[i] = out->coefficient[0][i] * x[0][i];
        for (int i = 0; i < lanes && c == 2; i++)
            shift[i] = out->coefficient[1][i] * x[0][i] + out->coefficient[2][i] * x[1][i];
        colour(first, first + mixture * plane, shift, x[c], half, lanes, linear, factor, out->d_mean[c],
               out->d_log_scale[c]);
    }
    for (int i = 0; i < lanes; i++) out->joint[i] = p[k * plane + i] + linear[i] + logarithm(factor[i]);
}

/* Writes log of sum over components of e^value into `out`, for values `stride` floats apart. */
static void log_sum_exp(const float *values, int64_t stride, int mixture, int lanes, float *out)
{
    float top[LANES], sum[LANES] = {0};
    for (int i = 0; i < lanes; i++) top[i] = values[i];
    for (int k = 1; k < mixture; k++)
        for (int i = 0; i < lanes; i++) top[i] = values[k * stride + i] > top[i] ? values[k * stride + i] : top[i];
    for (int k = 0; k < mixture; k++)
        for (int i = 0; i < lanes; i++) sum[i] += exponential(values[k * stride + i] - top[i]);
    for (int i = 0; i < lanes; i++) out[i] = top[i] + logarithm(sum[i]);
}

/* Gradients of component k, weighted by its responsibility. */
static void write_gradient(float *g, int64_t plane, int k, int mixture, int colours, float x[3][LANES], int lanes,
                           const Component *of, const float *logit, const float *evidence, const float *normaliser)
{
    int per_colour = colours == 3 ? 3 : 2;
    float weight[LANES];
    for (int i = 0; i < lanes; i++) {
        weight[i] = exponential(of->joint[i] - evidence[i]);
        g[k * plane + i] = weight[i] - exponential(logit[i] - normaliser[i]);
    }
    for (int c = 0; c < colours; c++) {
        float *first = g + (mixture + c * per_colour * mixture + k) * plane;
        for (int i = 0; i < lanes; i++) {
            first[i] = weight[i] * of->d_mean[c][i];
            first[mixture * plane + i] = weight[i] * of->d_log_scale[c][i];
        }
        for (int i = 0; i < lanes && colours == 3; i++) {
            float coefficient = of->coefficient[c][i];
            float d_mean = c == 0 ? of->d_mean[1][i] : of->d_mean[2][i], other = c == 2 ? x[1][i] : x[0][i];
            first[2 * mixture * plane + i] = weight[i] * d_mean * other * (1.0f - coefficient * coefficient);
        }
    }
}

/* Log p(x) of each image, and the gradient of the parameters for unit upstream unless `gradient` is null.
 * Parameters (batch, P, plane), x (batch, colours, plane) in [0, 1], log_prob (batch). Returns 0, or 1 without memory. */
int vaebench_mixture(const float *parameters, const float *x, double *log_prob, float *gradient, int64_t batch,
                     int64_t mixture, int64_t colours, int64_t plane, float half, int32_t threads)
{
    int64_t channels = (colours == 3 ? 10 : 3) * mixture;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < batch; image++) {
        Component *of = malloc((size_t)mixture * sizeof(Component));
        if (!of) {
            failed = 1;
            continue;
        }
        const float *p = parameters + image * channels * plane;
        log_prob[image] = 0;
        for (int64_t at = 0; at < plane; at += LANES) {
            int lanes = plane - at < LANES ? (int)(plane - at) : LANES;
            float levels[3][LANES], evidence[LANES], normaliser[LANES];
            for (int c = 0; c < colours; c++)
                for (int i = 0; i < lanes; i++) levels[c][i] = 2.0f * x[(image * colours + c) * plane + at + i] - 1.0f;
            for (int k = 0; k < mixture; k++)
                component(p + at, plane, k, (int)mixture, (int)colours, levels, half, lanes, of + k);
            log_sum_exp(of->joint, sizeof(Component) / sizeof(float), (int)mixture, lanes, evidence);
            log_sum_exp(p + at, plane, (int)mixture, lanes, normaliser);
            for (int i = 0; i < lanes; i++) log_prob[image] += (double)evidence[i] - normaliser[i];
            for (int k = 0; k < mixture && gradient; k++)
                write_gradient(gradient + image * channels * plane + at, plane, k, (int)mixture, (int)colours, levels,
                               lanes, of + k, p + at + k * plane, evidence, normaliser);
        }
        free(of);
    }
    return failed;
}
