/* What stands between the last convolution of a cell and the sum: norm, gate and factor; see gate.c. */

#ifndef VAEBENCH_GATE_H
#define VAEBENCH_GATE_H

#include <stdint.h>

/* gain * gate * norm of maps with so many channels: the applied norm (4, channels) (null: none), and weight (hidden,
 * channels) and bias, weight (channels, hidden) and bias of the gate's two linear layers (none if `hidden` is 0). */
typedef struct {
    int64_t channels, hidden;
    float gain;
    const float *norm, *const *gate;
} End;

/* gain * gate * norm as scale and shift (channels) of one image, from the mean of its map over pixels (channels);
 * leaves the gate's hidden units and the gates themselves. Without a gate only scale and shift are touched. */
void open_gate(const End *end, const float *mean, float *units, float *gates, float *scale, float *shift);

/* The way back for one image of so many pixels: scale and shift (channels) that make of the cell's gradient that of the
 * normed map, and the gradients of the gate's logits (channels) and hidden units; from the sums over pixels of the
 * cell's gradient and of its product with map - mean (channels). */
void gate_gradient(const End *end, const float *units, const float *gates, const float *sums, const float *products,
                   int64_t pixels, float *d_logits, float *d_units, float *scale, float *shift);

/* Adds what one image adds to the gradients of the gate's four tensors; `room` holds `channels` floats. */
void add_gate_gradients(const End *end, const float *mean, const float *units, const float *d_logits,
                        const float *d_units, float *room, float *const *d_gate);

#endif
