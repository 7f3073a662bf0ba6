/* Log p(x) of independent Bernoulli pixels with its gradient, in one pass. The reference is `bernoulli_log_prob`. */

#include "exp_log.h"

#define LANES 16 /* sums kept apart, so that they fill vectors and lose few digits */

static inline float magnitude(float value) { return value < 0.0f ? -value : value; }

/* log p of a pixel under its logit l, and sigma(l). With e = e^-|l|: log p = x l - max(l, 0) - ln(1 + e). */
static inline float log_probability(float l, float x, float *probability)
{
    float one_e = 1.0f + exponential(-magnitude(l));
    *probability = (l < 0.0f ? one_e - 1.0f : 1.0f) / one_e;
    return x * l - (l > 0.0f ? l : 0.0f) - logarithm(one_e);
}

/* log p of one image; writes x - sigma(l) into `gradient`, and sets `strange` if a pixel is neither 0 nor 1. */
static float bernoulli_image(const float *logits, const float *x, float *gradient, int64_t size, int *strange)
{
    float sums[LANES] = {0}, total = 0.0f;
    int32_t odd[LANES] = {0};
    int64_t whole = size - size % LANES;
    for (int64_t start = 0; start < whole; start += LANES)
        for (int j = 0; j < LANES; j++) {
            float value = x[start + j], probability;
            sums[j] += log_probability(logits[start + j], value, &probability);
            gradient[start + j] = value - probability;
            odd[j] |= value * value != value; /* only 0 and 1 are their own squares */
        }
    for (int64_t i = whole; i < size; i++) {
        float probability;
        sums[i - whole] += log_probability(logits[i], x[i], &probability);
        gradient[i] = x[i] - probability;
        odd[0] |= x[i] * x[i] != x[i];
    }
    for (int j = 0; j < LANES; j++) total += sums[j], *strange |= odd[j];
    return total;
}

/* Log p(x) of each image (size) and its gradient in the logits; returns whether all x are binary. */
int32_t vaebench_bernoulli(const float *logits, const float *x, float *log_prob, float *gradient, int64_t images,
                           int64_t size, int32_t threads)
{
    int strange = 0;
#pragma omp parallel for num_threads(threads) reduction(| : strange) if (threads > 1)
    for (int64_t image = 0; image < images; image++) {
        int64_t at = image * size;
        log_prob[image] = bernoulli_image(logits + at, x + at, gradient + at, size, &strange);
    }
    return !strange;
}
