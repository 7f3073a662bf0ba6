"""Depthwise convolutions of stride 1 in Triton, channels-last: values, and gradients of inputs and weights."""
