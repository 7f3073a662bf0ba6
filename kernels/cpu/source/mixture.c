/* Log p(x) under a mixture of discretised logistics (Salimans et al. 2017), with its gradient in the same pass, and the
 * mixture's mean. The reference is kernels/reference/mixture.py.
 *
 * Parameters of an image are planes of pixels: a logit for each of K components, then for each colour K means, K
 * log scales and, with three colours, K logits of coefficients. LANES pixels are worked on at a time, in loops that
 * become vectors; of images that lie pixel by pixel they are brought into planes first. */

#include "exp_log.h"
#include "scratch.h"
#include "transpose.h"

#define LANES 64 /* pixels that an inner loop works on */
#define MIN_LOG_SCALE (-7.0f)

/* What a mixture's parameters look like, `plane` floats from one to the next of a pixel as they are worked on; pixels
 * of an image; and half the distance between two levels of a pixel. */
typedef struct {
    int64_t components, colours, plane, pixels;
    int by_pixels;
    float half;
} Mixture;

/* One component of LANES pixels: joint log probability with its logit, slopes of the level's log probability in
 * mean and log scale, and the coefficients that add red to the mean of green, and red and green to that of blue. */
typedef struct {
    float joint[LANES], d_mean[3][LANES], d_log_scale[3][LANES], coefficient[3][LANES];
} Component;

/* First plane of a colour's means; its log scales and coefficients follow after as many planes as there are
 * components. */
static int64_t mean_plane(const Mixture *m, int64_t colour, int64_t k)
{
    int64_t per_colour = m->colours == 3 ? 3 : 2;
    return (m->components + colour * per_colour * m->components + k) * m->plane;
}

/* Log probability of a pixel's level in one colour of one component, as sum of `linear` and the log of `factor` (a
 * product over colours needs one logarithm only), and its slopes. With p and m = (centred +- half) / scale, it is
 * ln sigma(p) + ln sigma(-m) + ln(1 - e^-width); the lowest level keeps the first term alone, the highest the
 * second. */
static void level_log_prob(const float *mean, const float *log_scale, const float *shift, const float *x, float half,
                           int lanes, float *linear, float *factor, float *d_mean, float *d_log_scale)
{
    for (int i = 0; i < lanes; i++) {
        float above_floor = log_scale[i] < MIN_LOG_SCALE ? 0.0f : 1.0f;
        float inverse = exponential(-(log_scale[i] < MIN_LOG_SCALE ? MIN_LOG_SCALE : log_scale[i]));
        float above_lowest = x[i] < half - 1.0f ? 0.0f : 1.0f, below_highest = x[i] > 1.0f - half ? 0.0f : 1.0f;
        float interior = above_lowest * below_highest;
        float centred = x[i] - mean[i] - shift[i];
        float upper = (centred + half) * inverse, lower = (centred - half) * inverse, width = 2.0f * half * inverse;
        float a = exponential(upper < 0.0f ? upper : -upper) * below_highest;
        float b = exponential(lower < 0.0f ? lower : -lower) * above_lowest;
        float shrunk = exponential(-width);
        float series = 0.16666667f - width * (0.041666668f - width * 0.008333334f); /* of 1 - e^-width */
        series = width * (1.0f - width * (0.5f - width * series));
        float bin_width = (width < 0.125f ? series : 1.0f - shrunk) * interior + (1.0f - interior); /* 1 - e^-width */
        float one_a = 1.0f + a, one_b = 1.0f + b;
        float joint = 1.0f / (one_a * one_b * bin_width); /* one division for all three quotients */
        float tail = (upper > 0.0f ? a : below_highest) * (joint * one_b * bin_width);
        float head = (lower > 0.0f ? above_lowest : b) * (joint * one_a * bin_width);
        float narrowing = width * shrunk * (joint * one_a * one_b) * interior;
        linear[i] += (upper < 0.0f ? upper : 0.0f) * below_highest - (lower > 0.0f ? lower : 0.0f) * above_lowest;
        factor[i] *= joint * bin_width * bin_width;
        d_mean[i] = (head - tail) * inverse;
        d_log_scale[i] = (head * lower - tail * upper - narrowing) * above_floor;
    }
}

/* value = tanh of the logits, by tanh |v| = (1 - t) / (1 + t) with t = e^-2|v|. */
static void coefficients(const float *logit, int lanes, float *value)
{
    for (int i = 0; i < lanes; i++) {
        float magnitude = logit[i] < 0.0f ? -logit[i] : logit[i];
        float t = exponential(-2.0f * magnitude), tanh = (1.0f - t) / (1.0f + t);
        value[i] = logit[i] < 0.0f ? -tanh : tanh;
    }
}

/* Component k of up to LANES pixels x in [-1, 1], from their parameters. */
static void component(const Mixture *m, int64_t k, const float *parameters, float x[3][LANES], int lanes,
                      Component *out)
{
    float linear[LANES] = {0}, factor[LANES], shift[LANES] = {0};
    int64_t next = m->components * m->plane;
    for (int i = 0; i < lanes; i++) factor[i] = 1.0f;
    for (int64_t c = 0; c < m->colours && m->colours == 3; c++)
        coefficients(parameters + mean_plane(m, c, k) + 2 * next, lanes, out->coefficient[c]);
    for (int64_t c = 0; c < m->colours; c++) {
        const float *mean = parameters + mean_plane(m, c, k);
        for (int i = 0; i < lanes && c == 1; i++) shift[i] = out->coefficient[0][i] * x[0][i];
        for (int i = 0; i < lanes && c == 2; i++)
            shift[i] = out->coefficient[1][i] * x[0][i] + out->coefficient[2][i] * x[1][i];
        level_log_prob(mean, mean + next, shift, x[c], m->half, lanes, linear, factor, out->d_mean[c],
                       out->d_log_scale[c]);
    }
    for (int i = 0; i < lanes; i++) out->joint[i] = parameters[k * m->plane + i] + linear[i] + logarithm(factor[i]);
}

/* out (lanes) = log of the sum over components of e^value, for values `stride` floats apart. */
static void log_sum_exp(const float *values, int64_t stride, int64_t components, int lanes, float *out)
{
    float top[LANES], sum[LANES] = {0};
    for (int i = 0; i < lanes; i++) top[i] = values[i];
    for (int64_t k = 1; k < components; k++)
        for (int i = 0; i < lanes; i++) top[i] = values[k * stride + i] > top[i] ? values[k * stride + i] : top[i];
    for (int64_t k = 0; k < components; k++)
        for (int i = 0; i < lanes; i++) sum[i] += exponential(values[k * stride + i] - top[i]);
    for (int i = 0; i < lanes; i++) out[i] = top[i] + logarithm(sum[i]);
}

/* Gradients of the parameters of component k, weighted by its responsibility e^(joint - evidence). */
static void component_gradient(const Mixture *m, int64_t k, const Component *of, const float *parameters,
                               float x[3][LANES], const float *evidence, const float *normaliser, int lanes,
                               float *gradient)
{
    int64_t next = m->components * m->plane;
    const float *logit = parameters + k * m->plane;
    float responsibility[LANES];
    for (int i = 0; i < lanes; i++) {
        responsibility[i] = exponential(of->joint[i] - evidence[i]);
        gradient[k * m->plane + i] = responsibility[i] - exponential(logit[i] - normaliser[i]);
    }
    for (int64_t c = 0; c < m->colours; c++) {
        float *out = gradient + mean_plane(m, c, k);
        for (int i = 0; i < lanes; i++) {
            out[i] = responsibility[i] * of->d_mean[c][i];
            out[next + i] = responsibility[i] * of->d_log_scale[c][i];
        }
        for (int i = 0; i < lanes && m->colours == 3; i++) {
            float coefficient = of->coefficient[c][i];
            float d_mean = c == 0 ? of->d_mean[1][i] : of->d_mean[2][i], other = c == 2 ? x[1][i] : x[0][i];
            out[2 * next + i] = responsibility[i] * d_mean * other * (1.0f - coefficient * coefficient);
        }
    }
}

/* Adds log p of up to LANES pixels to `log_prob` and, unless null, writes their gradient; `room` is for all
 * components. */
static void add_pixels(const Mixture *m, const float *parameters, const float *x, int lanes, Component *room,
                       double *log_prob, float *gradient)
{
    float levels[3][LANES], evidence[LANES], normaliser[LANES];
    for (int64_t c = 0; c < m->colours; c++)
        for (int i = 0; i < lanes; i++) levels[c][i] = 2.0f * x[c * m->pixels + i] - 1.0f;
    for (int64_t k = 0; k < m->components; k++) component(m, k, parameters, levels, lanes, room + k);
    log_sum_exp(room->joint, sizeof(Component) / sizeof(float), m->components, lanes, evidence);
    log_sum_exp(parameters, m->plane, m->components, lanes, normaliser);
    for (int i = 0; i < lanes; i++) *log_prob += (double)evidence[i] - normaliser[i];
    for (int64_t k = 0; k < m->components && gradient; k++)
        component_gradient(m, k, room + k, parameters, levels, evidence, normaliser, lanes, gradient);
}

static Mixture mixture_of(int64_t components, int64_t colours, int64_t pixels, int by_pixels, float half)
{
    return (Mixture){components, colours, by_pixels ? LANES : pixels, pixels, by_pixels, half};
}

static int64_t parameters_of(const Mixture *m) { return (m->colours == 3 ? 10 : 3) * m->components; }

/* Parameters of up to LANES pixels of an image, from pixel `at` on; `room` for them. */
static const float *planes_of(const Mixture *m, const float *image, int64_t at, int lanes, float *room)
{
    if (!m->by_pixels) return image + at;
    transpose(image + at * parameters_of(m), parameters_of(m), lanes, parameters_of(m), room, LANES);
    return room;
}

/* Log p(x) of each image, and the gradient of the parameters for unit upstream unless `gradient` is null.
 * Parameters and gradient (batch, P, pixels), or (batch, pixels, P) with `by_pixels`; x (batch, colours, pixels) in
 * [0, 1], log_prob (batch). */
void vaebench_mixture(const float *parameters, const float *x, double *log_prob, float *gradient, int64_t batch,
                      int64_t components, int64_t colours, int64_t pixels, int32_t by_pixels, float half,
                      int32_t threads)
{
    Mixture m = mixture_of(components, colours, pixels, by_pixels, half);
    int64_t count = parameters_of(&m);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < batch; image++) {
        Component *room = (Component *)scratch(COMPONENTS, components * (int64_t)(sizeof(Component) / sizeof(float)));
        float *planes = scratch(PLANES, 2 * count * LANES), *slopes = planes + count * LANES;
        const float *levels = x + image * colours * pixels;
        float *g = gradient ? gradient + image * count * pixels : NULL;
        log_prob[image] = 0;
        for (int64_t at = 0; at < pixels; at += LANES) {
            int lanes = pixels - at < LANES ? (int)(pixels - at) : LANES;
            const float *p = planes_of(&m, parameters + image * count * pixels, at, lanes, planes);
            float *to = !g ? NULL : by_pixels ? slopes : g + at;
            add_pixels(&m, p, levels + at, lanes, room, log_prob + image, to);
            if (g && by_pixels) transpose(slopes, LANES, count, lanes, g + at * count, count);
        }
    }
}

/* value = E[clamp(X, -1, 1)] of a logistic X: -1 + s (softplus((m + 1) / s) - softplus((m - 1) / s)). */
static void clamped_mean(const float *mean, const float *shift, const float *log_scale, int lanes, float *value)
{
    for (int i = 0; i < lanes; i++) {
        float floored = log_scale[i] < MIN_LOG_SCALE ? MIN_LOG_SCALE : log_scale[i];
        float scale = exponential(floored), inverse = exponential(-floored), centre = mean[i] + shift[i];
        float upper = (centre + 1.0f) * inverse, lower = (centre - 1.0f) * inverse;
        float linear = (upper > 0.0f ? upper : 0.0f) - (lower > 0.0f ? lower : 0.0f);
        float a = exponential(upper > 0.0f ? -upper : upper), b = exponential(lower > 0.0f ? -lower : lower);
        value[i] = scale * (linear + logarithm((1.0f + a) / (1.0f + b))) - 1.0f;
    }
}

/* Means of up to LANES pixels, planes of an image, from their parameters. */
static void mean_of_pixels(const Mixture *m, const float *parameters, int lanes, float *out)
{
    float normaliser[LANES], sums[3][LANES] = {{0}};
    int64_t next = m->components * m->plane;
    log_sum_exp(parameters, m->plane, m->components, lanes, normaliser);
    for (int64_t k = 0; k < m->components; k++) {
        float value[3][LANES], shift[LANES] = {0}, coefficient[3][LANES], weight[LANES];
        for (int i = 0; i < lanes; i++) weight[i] = exponential(parameters[k * m->plane + i] - normaliser[i]);
        for (int64_t c = 0; c < m->colours; c++) {
            const float *mean = parameters + mean_plane(m, c, k);
            if (m->colours == 3) coefficients(mean + 2 * next, lanes, coefficient[c]);
            for (int i = 0; i < lanes && c == 1; i++) shift[i] = coefficient[0][i] * value[0][i];
            for (int i = 0; i < lanes && c == 2; i++)
                shift[i] = coefficient[1][i] * value[0][i] + coefficient[2][i] * value[1][i];
            clamped_mean(mean, shift, mean + next, lanes, value[c]);
            for (int i = 0; i < lanes; i++) sums[c][i] += weight[i] * value[c][i];
        }
    }
    for (int64_t c = 0; c < m->colours; c++)
        for (int i = 0; i < lanes; i++) {
            float share = 0.5f * sums[c][i] + 0.5f;
            share = share < 0.0f ? 0.0f : share;
            out[c * m->pixels + i] = share > 1.0f ? 1.0f : share;
        }
}

/* Mean images (batch, colours, pixels) in [0, 1], each colour's coupling taken at the component's means before it;
 * parameters as above. */
void vaebench_mixture_mean(const float *parameters, float *out, int64_t batch, int64_t components, int64_t colours,
                           int64_t pixels, int32_t by_pixels, int32_t threads)
{
    Mixture m = mixture_of(components, colours, pixels, by_pixels, 0.0f);
    int64_t count = parameters_of(&m);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < batch; image++) {
        float *planes = scratch(PLANES, count * LANES), *to = out + image * colours * pixels;
        for (int64_t at = 0; at < pixels; at += LANES) {
            int lanes = pixels - at < LANES ? (int)(pixels - at) : LANES;
            mean_of_pixels(&m, planes_of(&m, parameters + image * count * pixels, at, lanes, planes), lanes, to + at);
        }
    }
}
