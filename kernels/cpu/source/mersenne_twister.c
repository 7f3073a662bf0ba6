/* Binary draws with the generator and the bits of `torch.rand` on the CPU: mt19937 (Matsumoto & Nishimura 1998). */

#include <stdint.h>

#define WORDS 624 /* of the generator's state */
#define AHEAD 397

static inline uint32_t twist(uint32_t high, uint32_t low)
{
    return ((high & 0x80000000u) | (low & 0x7fffffffu)) >> 1 ^ (-(low & 1u) & 0x9908b0dfu);
}

/* The next 624 words, before tempering. */
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

/* out (count) = 1 where a uniform draw lies below p: the lower 24 bits of each word, as in PyTorch. */
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
