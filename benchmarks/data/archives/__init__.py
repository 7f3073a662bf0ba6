"""What .npy files and .npz archives say of themselves, checked before anything of them is unpacked.

Imports `base`. Public: `headers`, used by the readers of arrays.
"""
