/* A draw z from the posterior q with KL(q, p) and, on request, log q(z) - log p(z); and the gradients. The reference is
 * `gaussian_sample_kl` in kernels/reference/. Latents are worked on LATENTS at a time, in loops that become vectors. */

#include "exp_log.h"
#include "philox.h"
#include "scratch.h"
#include "transpose.h"
#include "vector.h"

/* How raw values become Gaussians: clamp 0 and floor 0 stand for none. */
typedef struct {
    float clamp, floor;
    int32_t residual;
} Form;

/* Raw mean and log scale, or their gradients, of samples `row` floats apart; null pointers stand for zeros. Values of a
 * sample lie side by side, channel by channel, where `step` is 0, else pixel by pixel, `step` floats from one to the
 * next; those of a posterior and its prior lie in the same order. */
typedef struct {
    float *mean, *log_scale;
    int64_t row, step;
} Raw;

/* Latents of a sample: maps of so many channels and pixels. */
typedef struct {
    int64_t channels, pixels;
} Shape;

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

/* Values `first` to `first + n` of a sample's map, in its order; and the way back. */
static void read_values(const float *map, int64_t step, int64_t channels, int64_t first, int64_t n, float *out)
{
    int64_t run = step > channels ? channels : first + n, pixel = first / run, c = first % run; /* without gaps: one */
    for (; n > 0; pixel++, c = 0) {
        int64_t some = run - c < n ? run - c : n;
        for (int64_t i = 0; i < some; i += WIDE)
            store_some(out + i, load_some(map + pixel * step + c + i, some - i), some - i);
        out += some, n -= some;
    }
}

static void write_values(const float *values, int64_t step, int64_t channels, int64_t first, int64_t n, float *map)
{
    int64_t run = step > channels ? channels : first + n, pixel = first / run, c = first % run; /* without gaps: one */
    for (; n > 0; pixel++, c = 0) {
        int64_t some = run - c < n ? run - c : n;
        for (int64_t i = 0; i < some; i += WIDE)
            store_some(map + pixel * step + c + i, load_some(values + i, some - i), some - i);
        values += some, n -= some;
    }
}

/* Raw mean and log scale of n latents of a sample from `first` on. */
static void read_raw(Raw raw, int64_t sample, int64_t channels, int64_t first, int n, float *mean, float *log_scale)
{
    if (raw.mean) {
        read_values(raw.mean + sample * raw.row, raw.step, channels, first, n, mean);
        read_values(raw.log_scale + sample * raw.row, raw.step, channels, first, n, log_scale);
        return;
    }
    for (int i = 0; i < n; i++) mean[i] = log_scale[i] = 0.0f;
}

/* The Gaussian of n latents whose raw values are in `out`; those of `offset`, if any, are added first. */
static void read_gaussian(Gaussian *out, const Gaussian *offset, Form form, int n)
{
    for (int i = 0; i < n; i++) out->mean_slope[i] = out->log_scale_slope[i] = 1.0f;
    for (int i = 0; i < n && offset; i++) {
        out->mean[i] += offset->mean[i];
        out->log_scale[i] += offset->log_scale[i];
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
static void read_pair(Raw posterior, Raw prior, int64_t sample, int64_t channels, int64_t first, Form form, int n,
                      Gaussian *q, Gaussian *p)
{
    read_raw(posterior, sample, channels, first, n, q->mean, q->log_scale);
    read_raw(prior, sample, channels, first, n, p->mean, p->log_scale);
    read_gaussian(q, form.residual ? p : NULL, form, n);
    read_gaussian(p, NULL, form, n);
}

/* z, KL and, unless null, log q(z) - log p(z) of n latents. */
static void sample_kl(const Gaussian *q, const Gaussian *p, const float *eps, int n, float *z, float *kl,
                      float *log_ratio)
{
    for (int i = 0; i < n; i++) {
        float inverse = 1.0f / p->scale[i], shift = (q->mean[i] - p->mean[i]) * inverse, ratio = q->scale[i] * inverse;
        z[i] = q->mean[i] + q->scale[i] * eps[i];
        kl[i] = 0.5f * (shift * shift + (ratio * ratio - 1.0f)) - (q->log_scale[i] - p->log_scale[i]);
    }
    for (int i = 0; i < n && log_ratio; i++) {
        float distance = (z[i] - p->mean[i]) / p->scale[i];
        log_ratio[i] = 0.5f * (distance * distance - eps[i] * eps[i]) - (q->log_scale[i] - p->log_scale[i]);
    }
}

/* A sample's noise in the order of its latents; `room` for one map. */
static void draw_noise(int64_t seed, int64_t group, int64_t sample, Shape shape, int by_pixels, float *room, float *out)
{
    int64_t size = shape.channels * shape.pixels;
    float drawn[LATENTS], *planes = by_pixels ? room : out;
    for (int64_t first = 0; first < size; first += LATENTS) {
        philox_normals(seed, group, sample, first, drawn);
        memcpy(planes + first, drawn, (size_t)(size - first < LATENTS ? size - first : LATENTS) * sizeof(float));
    }
    if (by_pixels) transpose(planes, shape.pixels, shape.channels, shape.pixels, out, shape.channels);
}

/* Sum of a sample's values, channel by channel whatever their order: the same for either; `room` for one map. */
static float sum_of_sample(const float *values, Shape shape, int by_pixels, float *room)
{
    int64_t size = shape.channels * shape.pixels;
    float of_lane[LATENTS] = {0};
    double sum = 0;
    if (by_pixels) transpose(values, shape.channels, shape.pixels, shape.channels, room, shape.pixels);
    const float *planes = by_pixels ? room : values;
    for (int64_t first = 0; first < size; first += LATENTS)
        for (int64_t i = 0; i < LATENTS && first + i < size; i++) of_lane[i] += planes[first + i];
    for (int i = 0; i < LATENTS; i++) sum += of_lane[i];
    return (float)sum;
}

/* z, KL and, unless null, log q(z) - log p(z) (samples), nats. Noise is read if `keyed` is 0, else drawn and written;
 * it and z lie in the order of the posterior, without gaps. */
void vaebench_gaussian(Raw posterior, Raw prior, Form form, float *noise, int32_t keyed, int64_t seed, int64_t group,
                       int64_t first_sample, float *z, float *kl, float *log_ratio, int64_t samples, Shape shape,
                       int32_t threads)
{
    int64_t size = shape.channels * shape.pixels;
    int by_pixels = posterior.step > 0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++) {
        Gaussian q, p;
        float *room = scratch(LATENT_MAPS, 3 * size), *kls = room + size, *log_ratios = room + 2 * size;
        float *eps = noise + sample * size;
        if (keyed) draw_noise(seed, group, first_sample + sample, shape, by_pixels, room, eps);
        for (int64_t first = 0; first < size; first += LATENTS) {
            int n = size - first < LATENTS ? (int)(size - first) : LATENTS;
            read_pair(posterior, prior, sample, shape.channels, first, form, n, &q, &p);
            sample_kl(&q, &p, eps + first, n, z + sample * size + first, kls + first,
                      log_ratio ? log_ratios + first : NULL);
        }
        kl[sample] = sum_of_sample(kls, shape, by_pixels, room);
        if (log_ratio) log_ratio[sample] = sum_of_sample(log_ratios, shape, by_pixels, room);
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

/* Gradients of the raw values, `to` and `to_prior`; the latter are skipped if null. Upstream gradients are grad_z and
 * grad_kl (samples); grad_z and noise lie in the order of the posterior, without gaps. */
void vaebench_gaussian_backward(Raw posterior, Raw prior, Form form, const float *noise, const float *grad_z,
                                const float *grad_kl, Raw to, Raw to_prior, int64_t samples, Shape shape,
                                int32_t threads)
{
    int64_t size = shape.channels * shape.pixels, channels = shape.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++) {
        Gaussian q, p;
        for (int64_t first = 0; first < size; first += LATENTS) {
            int n = size - first < LATENTS ? (int)(size - first) : LATENTS;
            int64_t at = sample * size + first;
            float d_mean[LATENTS], d_log_scale[LATENTS], p_mean[LATENTS], p_log_scale[LATENTS];
            read_pair(posterior, prior, sample, channels, first, form, n, &q, &p);
            sample_kl_backward(&q, &p, noise + at, grad_z + at, grad_kl[sample], n, d_mean, d_log_scale, p_mean,
                               p_log_scale);
            write_values(d_mean, to.step, channels, first, n, to.mean + sample * to.row);
            write_values(d_log_scale, to.step, channels, first, n, to.log_scale + sample * to.row);
            if (!to_prior.mean) continue;
            for (int i = 0; i < n && form.residual; i++) { /* the posterior's gradient reaches the prior too */
                p_mean[i] += d_mean[i];
                p_log_scale[i] += d_log_scale[i];
            }
            write_values(p_mean, to_prior.step, channels, first, n, to_prior.mean + sample * to_prior.row);
            write_values(p_log_scale, to_prior.step, channels, first, n, to_prior.log_scale + sample * to_prior.row);
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
