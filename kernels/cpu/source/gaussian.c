/* A draw z from the posterior q with KL(q, p) and, on request, log q(z) - log p(z); and the gradients. The reference is
 * `gaussian_sample_kl` in kernels/reference/. Latents are worked on LATENTS at a time, in loops that become vectors. */

#include "exp_log.h"
#include "philox.h"

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

/* A Gaussian of up to LATENTS latents, and the slopes of mean and log scale in the raw values. */
typedef struct {
    float mean[LATENTS], scale[LATENTS], log_scale[LATENTS], mean_slope[LATENTS], log_scale_slope[LATENTS];
} Gaussian;

/* value = clamp tanh(value / clamp), by tanh |v| = (1 - t) / (1 + t) with t = e^-2|v|; and its slope. */
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

/* The Gaussian of n latents of a sample from `first` on; `offset`, if any, holds raw values to add. */
static void read_gaussian(Raw raw, Raw offset, int64_t sample, int64_t first, Form form, int n, Gaussian *out)
{
    for (int i = 0; i < n; i++) {
        out->mean[i] = raw.mean ? raw.mean[sample * raw.row + first + i] : 0.0f;
        out->log_scale[i] = raw.mean ? raw.log_scale[sample * raw.row + first + i] : 0.0f;
        out->mean_slope[i] = out->log_scale_slope[i] = 1.0f;
    }
    for (int i = 0; i < n && offset.mean; i++) {
        out->mean[i] += offset.mean[sample * offset.row + first + i];
        out->log_scale[i] += offset.log_scale[sample * offset.row + first + i];
    }
    if (form.clamp > 0.0f) {
        soft_clamp(out->mean, out->mean_slope, form.clamp, n);
        soft_clamp(out->log_scale, out->log_scale_slope, form.clamp, n);
    }
    for (int i = 0; i < n; i++) out->scale[i] = exponential(out->log_scale[i]);
    if (form.floor > 0.0f)
        for (int i = 0; i < n; i++) {
            float without_floor = out->scale[i];
            out->scale[i] = without_floor + form.floor;
            out->log_scale_slope[i] *= without_floor / out->scale[i];
            out->log_scale[i] = logarithm(out->scale[i]);
        }
}

/* Posterior and prior of n latents; a residual posterior is an offset from the prior's raw values. */
static void read_pair(Raw posterior, Raw prior, int64_t sample, int64_t first, Form form, int n, Gaussian *q,
                      Gaussian *p)
{
    Raw none = {0, 0, 0};
    read_gaussian(posterior, form.residual ? prior : none, sample, first, form, n, q);
    read_gaussian(prior, none, sample, first, form, n, p);
}

/* z of n latents; adds their KL and, if wanted, log q(z) - log p(z) to sums that are kept apart per lane. */
static void sample_kl(const Gaussian *q, const Gaussian *p, const float *eps, int n, int wants_log_ratio, float *z,
                      float *kl, float *log_ratio)
{
    for (int i = 0; i < n; i++) {
        float inverse = 1.0f / p->scale[i], shift = (q->mean[i] - p->mean[i]) * inverse, ratio = q->scale[i] * inverse;
        z[i] = q->mean[i] + q->scale[i] * eps[i];
        kl[i] += 0.5f * (shift * shift + (ratio * ratio - 1.0f)) - (q->log_scale[i] - p->log_scale[i]);
    }
    for (int i = 0; i < n && wants_log_ratio; i++) {
        float distance = (z[i] - p->mean[i]) / p->scale[i];
        log_ratio[i] += 0.5f * (distance * distance - eps[i] * eps[i]) - (q->log_scale[i] - p->log_scale[i]);
    }
}

/* z (samples, size), KL and, unless null, log q(z) - log p(z) (samples), nats. Noise (samples, size) is read if
 * `keyed` is 0, else drawn and written. */
void vaebench_gaussian(Raw posterior, Raw prior, Form form, float *noise, int32_t keyed, int64_t seed, int64_t group,
                       int64_t first_sample, float *z, float *kl, float *log_ratio, int64_t samples, int64_t size,
                       int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++) {
        Gaussian q, p;
        float drawn[LATENTS], kl_of_lane[LATENTS] = {0}, log_ratio_of_lane[LATENTS] = {0};
        double kl_sum = 0, log_ratio_sum = 0;
        for (int64_t first = 0; first < size; first += LATENTS) {
            int n = size - first < LATENTS ? (int)(size - first) : LATENTS;
            float *eps = noise + sample * size + first;
            if (keyed) {
                philox_normals(seed, group, first_sample + sample, first, drawn);
                memcpy(eps, drawn, (size_t)n * sizeof(float));
            }
            read_pair(posterior, prior, sample, first, form, n, &q, &p);
            sample_kl(&q, &p, eps, n, log_ratio != NULL, z + sample * size + first, kl_of_lane, log_ratio_of_lane);
        }
        for (int i = 0; i < LATENTS; i++) kl_sum += kl_of_lane[i], log_ratio_sum += log_ratio_of_lane[i];
        kl[sample] = (float)kl_sum;
        if (log_ratio) log_ratio[sample] = (float)log_ratio_sum;
    }
}

/* Gradients of the raw values of n latents, from those of z (n) and of the sample's KL. */
static void sample_kl_backward(const Gaussian *q, const Gaussian *p, const float *eps, const float *grad_z,
                               float grad_kl, int n, float *d_mean, float *d_log_scale, float *d_prior_mean,
                               float *d_prior_log_scale)
{
    for (int i = 0; i < n; i++) {
        float inverse = 1.0f / p->scale[i], shift = (q->mean[i] - p->mean[i]) * inverse, ratio = q->scale[i] * inverse;
        float pull = grad_kl * shift * inverse, g = grad_z[i], d_log = grad_kl * (ratio * ratio - 1.0f);
        d_prior_mean[i] = -pull * p->mean_slope[i];
        d_prior_log_scale[i] = -(grad_kl * shift * shift + d_log) * p->log_scale_slope[i];
        d_mean[i] = (g + pull) * q->mean_slope[i];
        d_log_scale[i] = (g * q->scale[i] * eps[i] + d_log) * q->log_scale_slope[i];
    }
}

/* Gradients of the raw values, (samples, size) each; those of the prior are skipped if null. Upstream gradients are
 * grad_z (samples, size) and grad_kl (samples). */
void vaebench_gaussian_backward(Raw posterior, Raw prior, Form form, const float *noise, const float *grad_z,
                                const float *grad_kl, float *d_mean, float *d_log_scale, float *d_prior_mean,
                                float *d_prior_log_scale, int64_t samples, int64_t size, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++) {
        Gaussian q, p;
        for (int64_t first = 0; first < size; first += LATENTS) {
            int n = size - first < LATENTS ? (int)(size - first) : LATENTS;
            int64_t at = sample * size + first;
            float p_mean[LATENTS], p_log_scale[LATENTS];
            read_pair(posterior, prior, sample, first, form, n, &q, &p);
            sample_kl_backward(&q, &p, noise + at, grad_z + at, grad_kl[sample], n, d_mean + at, d_log_scale + at,
                               p_mean, p_log_scale);
            for (int i = 0; i < n && d_prior_mean; i++) { /* a residual posterior's gradient reaches the prior too */
                d_prior_mean[at + i] = p_mean[i] + (form.residual ? d_mean[at + i] : 0.0f);
                d_prior_log_scale[at + i] = p_log_scale[i] + (form.residual ? d_log_scale[at + i] : 0.0f);
            }
        }
    }
}

/* z = mean + temperature exp(log_scale) noise of maps (images, pixels, channels); pixels of z lie side by side, those
 * of mean and log scale `step` floats apart, their images `row`. z holds the noise before. */
void vaebench_gaussian_sample(const float *mean, const float *log_scale, int64_t row, int64_t step, float temperature,
                              float *z, int64_t images, int64_t pixels, int64_t channels, int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; image++)
        for (int64_t pixel = 0; pixel < pixels; pixel++) {
            int64_t from = image * row + pixel * step, to = (image * pixels + pixel) * channels;
            for (int64_t c = 0; c < channels; c++)
                z[to + c] = mean[from + c] + temperature * exponential(log_scale[from + c]) * z[to + c];
        }
}
