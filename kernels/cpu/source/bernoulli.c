/* Pixels: binary draws, the Bernoulli log probability with its gradient, products with images that are mostly zero. */

#include "exp_log.h"

#define LANES 16 /* sums kept apart, so that they fill vectors and lose few digits */
#define ROWS 4   /* rows added to a sum at a time */

static inline float magnitude(float value) { return value < 0.0f ? -value : value; }

/* log p of a pixel under its logit l, and sigma(l). With e = e^-|l|: log p = x l - max(l, 0) - ln(1 + e). */
static inline float log_probability(float l, float x, float *probability)
{
    float one_e = 1.0f + exponential(-magnitude(l));
    *probability = (l < 0.0f ? one_e - 1.0f : 1.0f) / one_e;
    return x * l - (l > 0.0f ? l : 0.0f) - logarithm(one_e);
}

/* log p of one image; writes x - sigma(l) into `gradient`, and whether a pixel is not its own square into `strange`. */
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
            odd[j] |= value * value != value;
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

/* Log p(x) of each image (size) under independent Bernoulli pixels, and its gradient; returns whether all x are binary. */
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

/* Add `count` (at most ROWS) rows times their factors to `sum` (width). */
static inline void add_rows(float *restrict sum, const float *const *rows, const float *factors, int count, int64_t width)
{
    if (count == ROWS) {
        const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
        for (int64_t k = 0; k < width; k++)
            sum[k] += (factors[0] * a[k] + factors[1] * b[k]) + (factors[2] * c[k] + factors[3] * d[k]);
        return;
    }
    for (int j = 0; j < count; j++)
        for (int64_t k = 0; k < width; k++) sum[k] += factors[j] * rows[j][k];
}

/* sum (width) += the values x (size, `step` apart) times rows (size, width); rows of zeros are not read. */
static void add_lit(float *sum, const float *x, int64_t step, const float *rows, int64_t size, int64_t width)
{
    const float *lit[ROWS];
    float factors[ROWS];
    int found = 0;
    for (int64_t i = 0; i < size; i++) {
        if (x[i * step] == 0.0f) continue;
        lit[found] = rows + i * width;
        factors[found++] = x[i * step];
        if (found == ROWS) add_rows(sum, lit, factors, found, width), found = 0;
    }
    add_rows(sum, lit, factors, found, width);
}

/* out (images, width) = bias (width) + x (images, size) times rows (size, width). */
void vaebench_lit_rows(const float *x, const float *rows, const float *bias, float *out, int64_t images, int64_t size,
                       int64_t width, int32_t threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t image = 0; image < images; image++) {
        memcpy(out + image * width, bias, (size_t)width * sizeof(float));
        add_lit(out + image * width, x + image * size, 1, rows, size, width);
    }
}

/* out (size, width) = the transpose of x (images, size) times gradient (images, width). */
void vaebench_lit_rows_backward(const float *x, const float *gradient, float *out, int64_t images, int64_t size,
                                int64_t width, int32_t threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < size; i++) {
        memset(out + i * width, 0, (size_t)width * sizeof(float));
        add_lit(out + i * width, x + i, size, gradient, images, width);
    }
}

#define WORDS 624 /* of the generator's state */
#define AHEAD 397

static inline uint32_t twist(uint32_t high, uint32_t low)
{
    return ((high & 0x80000000u) | (low & 0x7fffffffu)) >> 1 ^ (-(low & 1u) & 0x9908b0dfu);
}

/* The next 624 words of the Mersenne Twister mt19937 (Matsumoto & Nishimura 1998), before tempering. */
static void next_words(uint32_t *words)
{
    for (int i = 0; i < WORDS - AHEAD; i++) words[i] = words[i + AHEAD] ^ twist(words[i], words[i + 1]);
    for (int i = WORDS - AHEAD; i < WORDS - 1; i++)
        words[i] = words[i + AHEAD - WORDS] ^ twist(words[i], words[i + 1]);
    words[WORDS - 1] = words[AHEAD - 1] ^ twist(words[WORDS - 1], words[0]);
}

static inline uint32_t tempered(uint32_t word)
{
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c5680u;
    word ^= word << 15 & 0xefc60000u;
    return word ^ word >> 18;
}

/* out (count) = 1 where a uniform draw lies below p: the lower 24 bits of each word of mt19937, as in PyTorch. */
void vaebench_below(uint32_t seed, const float *p, float *out, int64_t count)
{
    uint32_t words[WORDS] = {seed};
    for (uint32_t i = 1; i < WORDS; i++) words[i] = 1812433253u * (words[i - 1] ^ words[i - 1] >> 30) + i;
    for (int64_t start = 0; start < count; start += WORDS) {
        int64_t here = count - start < WORDS ? count - start : WORDS;
        next_words(words);
        for (int64_t i = 0; i < here; i++) {
            float uniform = (float)(int32_t)(tempered(words[i]) & 0xffffffu) * 0x1p-24f;
            out[start + i] = uniform < p[start + i] ? 1.0f : 0.0f;
        }
    }
}
