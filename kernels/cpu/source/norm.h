/* Batch norm, and the statistics of an image's channels of which those of a batch are made; see norm.c. */

#ifndef VAEBENCH_NORM_H
#define VAEBENCH_NORM_H

#include <stdint.h>

/* Rows of an applied norm (4, channels). */
enum { NORM_MEAN, NORM_INVERSE_STD, NORM_SCALE, NORM_SHIFT };

/* Mean over pixels and sum of squared deviations from it, (channels) each, of one image (pixels, channels). */
void image_statistics(const float *x, int64_t pixels, int64_t channels, float *mean, float *squares);

/* The same of each image of a batch, (batch, channels) each. */
void batch_statistics(const float *x, float *mean, float *squares, int64_t batch, int64_t pixels, int64_t channels,
                      int32_t threads);

/* Batch norm as a scale and a shift; see norm.c. */
void vaebench_norm(const float *mean, const float *squares, int64_t batch, int64_t pixels, int64_t channels,
                   const float *weight, const float *bias, double epsilon, double momentum, double repeats,
                   float *running_mean, float *running_variance, float *out);

/* Sums over pixels of the gradient and of gradient (y - center), (channels) each, of one image (pixels, channels); a
 * null center stands for zeros. */
void gradient_sums(const float *gradient, const float *y, const float *center, int64_t pixels, int64_t channels,
                   float *sum, float *product);

/* Gradients of weight and bias (channels) and the coefficients (3, channels) with which the gradient of batch norm's
 * input is scale * d + output_scale * x + shift, from the norm (4, channels) and the sums (2, channels) of d over n
 * values and of d (x - mean). */
void norm_gradient(const float *norm, const double *sums, double n, int64_t channels, float *d_weight, float *d_bias,
                   float *coefficients);

#endif
