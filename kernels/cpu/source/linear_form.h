/* Linear forms of two maps, as which the gradient of a batch norm's input is handed on without being written down. */

#ifndef VAEBENCH_LINEAR_FORM_H
#define VAEBENCH_LINEAR_FORM_H

#include <stdint.h>

/* The gradient of a layer's output: scale * gradient + output_scale * output + shift, with coefficients (batch, c) that
 * lie `per_image` apart (0: (c), the same for all images); a null `output` or `shift` stands for zeros, a null `scale`
 * for ones. */
typedef struct {
    const float *gradient, *output, *scale, *output_scale, *shift;
    int64_t per_image;
} Upstream;

/* out = base (unless null) + the form for one image, all (pixels, channels); `coefficient` is the first of its own.
 * `out` may be one of the maps. */
void linear_image(const Upstream *form, int64_t coefficient, const float *base, float *out, int64_t pixels,
                  int64_t channels);

/* The same for a batch, (batch, pixels, channels). */
void linear_batch(Upstream form, const float *base, float *out, int64_t batch, int64_t pixels, int64_t channels,
                  int32_t threads);

#endif
