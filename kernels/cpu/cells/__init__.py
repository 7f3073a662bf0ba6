"""CPU: residual cells and convolutions in C: in training, with gradients by hand (of convolutions alone, or with norms and
gate), and packed for many passes without.
"""
