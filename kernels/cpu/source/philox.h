/* Keyed standard normals; see philox.c. */

#ifndef VAEBENCH_PHILOX_H
#define VAEBENCH_PHILOX_H

#include <stdint.h>

#define COUNTERS 64               /* consecutive counters drawn for at once */
#define LATENTS (4 * COUNTERS)    /* their normals: each counter gives four words, each pair of words two normals */

/* Standard normals of LATENTS neighbouring latents of a sample, from latent `first` (divisible by 4) on. */
void philox_normals(int64_t seed, int64_t group, int64_t sample, int64_t first, float out[LATENTS]);

#endif
