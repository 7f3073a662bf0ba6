"""CPU: residual cells and convolutions in C: in training with gradients by hand, or packed for many passes without."""
