"""Layers that more than one model may use: convolutions with activation and weight norm, channel gates.

Also what models keep between passes, and the statistics of their batch norms. They import kernels alone; every model
may import them. Public: what each file defines.
"""
