"""What the compiler made of the Triton kernels, read back without a GPU: registers, spills, instructions, bytes.

Imports `kernels.gpu`. Public: `static_profile.static_profiles`.
"""
