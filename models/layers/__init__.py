"""Layers that more than one model may use: convolutions with activation and weight norm, channel gates.

They import kernels alone; every model may import them. Public: what each file defines.
"""
