/* Keyed noise: Philox 4x32-10 (Salmon et al. 2011) and Box-Muller, the noise of kernels/reference/philox.py. The
 * counter is (latent / 4, sample, group, 0) and the key the seed, so that noise depends on neither threads nor
 * batch. */

#include "philox.h"

#include "exp_log.h"

/* Four words for each of COUNTERS consecutive counters. */
static void philox(uint32_t first, uint32_t sample, uint32_t group, uint64_t seed, uint32_t words[4][COUNTERS])
{
    uint32_t *c0 = words[0], *c1 = words[1], *c2 = words[2], *c3 = words[3];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < COUNTERS; i++) {
        c0[i] = first + (uint32_t)i;
        c1[i] = sample;
        c2[i] = group;
        c3[i] = 0;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < COUNTERS; i++) {
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

/* Two normals from each pair of words: radius sqrt(-2 ln u), and an angle reduced to [-pi / 4, pi / 4] in integers. */
static void box_muller(const uint32_t *radius_word, const uint32_t *angle_word, float *first, float *second)
{
    float square[COUNTERS];
    for (int i = 0; i < COUNTERS; i++) {
        float uniform = (float)radius_word[i] * 0x1p-32f + 0x1p-33f; /* never 0 */
        square[i] = -2.0f * logarithm(uniform);
    }
    for (int i = 0; i < COUNTERS; i++) {
        uint32_t quarters = (angle_word[i] + 0x20000000u) >> 30; /* quarter turns, to the nearest */
        float x = (float)(int32_t)(angle_word[i] - (quarters << 30)) * 1.4629180792671596e-9f; /* times 2 pi / 2^32 */
        float q = x * x;
        float sine = x + x * q * (-1.666665494e-1f + q * (8.332178130e-3f + q * -1.951729703e-4f));
        float cosine = 1.0f - 0.5f * q + q * q * (4.166127852e-2f + q * -1.365244812e-3f);
        float horizontal = quarters & 1 ? sine : cosine, vertical = quarters & 1 ? cosine : sine;
        float radius = __builtin_sqrtf(square[i] > 0.0f ? square[i] : 0.0f);
        first[i] = radius * ((quarters + 1) & 2 ? -horizontal : horizontal);
        second[i] = radius * (quarters & 2 ? -vertical : vertical);
    }
}

void philox_normals(int64_t seed, int64_t group, int64_t sample, int64_t first, float out[LATENTS])
{
    uint32_t words[4][COUNTERS];
    float normals[4][COUNTERS];
    philox((uint32_t)(first / 4), (uint32_t)sample, (uint32_t)group, (uint64_t)seed, words);
    box_muller(words[0], words[1], normals[0], normals[1]);
    box_muller(words[2], words[3], normals[2], normals[3]);
    for (int i = 0; i < COUNTERS; i++)
        for (int lane = 0; lane < 4; lane++) out[4 * i + lane] = normals[lane][i];
}

/* Standard normals of `samples` images of `size` latents each, into out (samples, size). */
void vaebench_normals(float *out, int64_t seed, int64_t group, int64_t first_sample, int64_t samples, int64_t size,
                      int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t sample = 0; sample < samples; sample++)
        for (int64_t first = 0; first < size; first += LATENTS) {
            float noise[LATENTS];
            int64_t n = size - first < LATENTS ? size - first : LATENTS;
            philox_normals(seed, group, first_sample + sample, first, noise);
            memcpy(out + sample * size + first, noise, (size_t)n * sizeof(float));
        }
}
