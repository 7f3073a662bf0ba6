"""The operations on a CPU: C where there is a compiler (`source/`), else plain PyTorch, with gradients by hand.

Imports the interface and `kernels.reference`. Public: `backend.CPU`, `adamax.Adamax`, `pixels.uniform_below`.
"""
