"""The machine that numbers come from: its environment, its limits, and this process's memory.

Imports `kernels` and `records`. Public: `environment`, `limits`, `peak`, `process`.
"""
