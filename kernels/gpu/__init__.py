"""The operations in Triton: kernels, the plans of their launches, and their registration with torch.

Imports the interface and `kernels.reference`. Public: `operators.FUSED`, through `kernels.backends.fused`.
"""
