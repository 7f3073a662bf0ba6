/* Linear forms of two maps, as which the gradient of a batch norm's input is handed on without being written down. */

#ifndef VAEBENCH_LINEAR_FORM_H
#define VAEBENCH_LINEAR_FORM_H

#include <stdint.h>

/* The gradient of a layer's output: scale * gradient + output_scale * output + shift, with coefficients (batch, c) that
 * lie `per_image` apart (0: (c), the same for all images); a null `output` stands for zeros, and, on the way back
 * through a layer, null coefficients for the gradient itself. */
typedef struct {
    const float *gradient, *output, *scale, *output_scale, *shift;
    int64_t per_image;
} Upstream;

/* out = base (unless null) + the form for one image, all (pixels, channels); `coefficient` is the first of its own. */
void linear_image(const Upstream *form, int64_t coefficient, const float *base, float *out, int64_t pixels,
                  int64_t channels);

#endif
