/* out = base + scale * gradient + output_scale * output + shift, with coefficients per channel (and image). */

#include "linear_form.h"

#include "vector.h"

/* Some channels, from channel `start` on. */
INLINE void linear_channels(int vectors, int64_t columns, const Upstream *form, int64_t coefficient, const float *base,
                            float *out, int64_t start, int64_t pixels, int64_t channels)
{
    vector scale[CHUNK], output_scale[CHUNK], shift[CHUNK];
    for (int v = 0; v < vectors; v++) {
        scale[v] = form->scale ? load_some(form->scale + coefficient + v * WIDE, columns) : (vector){0} + 1.0f;
        output_scale[v] = form->output ? load_some(form->output_scale + coefficient + v * WIDE, columns) : (vector){0};
        shift[v] = form->shift ? load_some(form->shift + coefficient + v * WIDE, columns) : (vector){0};
    }
    for (int64_t at = start; at < start + pixels * channels; at += channels)
        for (int v = 0; v < vectors; v++) {
            vector value = scale[v] * load_some(form->gradient + at + v * WIDE, columns) + shift[v];
            if (form->output) value += output_scale[v] * load_some(form->output + at + v * WIDE, columns);
            if (base) value += load_some(base + at + v * WIDE, columns);
            store_some(out + at + v * WIDE, value, columns);
        }
}

void linear_image(const Upstream *form, int64_t coefficient, const float *base, float *out, int64_t pixels,
                  int64_t channels)
{
#define LINEAR(VECTORS, COLUMNS)                                                                                       \
    linear_channels(VECTORS, COLUMNS, form, coefficient + c, base, out, c, pixels, channels)
    BY_CHUNKS(channels, LINEAR)
}

void linear_batch(Upstream form, const float *base, float *out, int64_t batch, int64_t pixels, int64_t channels,
                     int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < batch; image++) {
        int64_t start = image * pixels * channels;
        Upstream one = form;
        one.gradient += start;
        if (form.output) one.output += start;
        linear_image(&one, image * form.per_image, base ? base + start : NULL, out + start, pixels, channels);
    }
}
