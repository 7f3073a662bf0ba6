"""The machine that numbers come from: its environment, and this process's memory.

Imports `kernels` and `records`. Public: `environment`, `peak`, `process`.
"""
