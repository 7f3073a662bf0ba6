"""What the compiler made of the kernels and how fast they are here: the verb `profile`.

Imports `kernels.readback`, `machine`, `report`. Public: `profile.profile`, `kernel_timing`.
"""
