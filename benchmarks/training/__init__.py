"""Training as functions: the loop, one step, compilation, diagnostics, and what a training costs beforehand.

Imports `models`, `data`, `suites`, `storage`, `records`. Public: `loop.train`, `cost`.
"""
