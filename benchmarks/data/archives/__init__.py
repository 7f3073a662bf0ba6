"""What archives say of themselves, checked before anything of them is unpacked: .npy, .npz and tar files.

Imports `base`, `cache` and the folder above. Public: `headers`, used by readers of arrays; `tars`, by that of folders.
"""
