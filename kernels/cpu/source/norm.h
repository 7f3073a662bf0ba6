/* Batch norm, and the statistics of an image's channels of which those of a batch are made; see norm.c. */

#ifndef VAEBENCH_NORM_H
#define VAEBENCH_NORM_H

#include <stdint.h>

/* Rows of an applied norm (4, channels). */
enum { NORM_MEAN, NORM_INVERSE_STD, NORM_SCALE, NORM_SHIFT };

/* Mean over pixels and sum of squared deviations from it, (channels) each, of one image (pixels, channels). */
void image_statistics(const float *x, int64_t pixels, int64_t channels, float *mean, float *squares);

#endif
