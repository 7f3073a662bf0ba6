"""Training as functions: the loop, one step, alone or in ranks, compilation, diagnostics, and its cost beforehand.

Imports `models`, `data`, `suites`, `storage`, `records`. Public: `loop.train`, `cost`.
"""
