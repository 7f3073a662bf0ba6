"""Every operation in plain PyTorch: the specification, and what the other backends are tested against.

Imports the interface in `kernels.ops` alone. One operation a file. Public: `backend.REFERENCE`.
"""
