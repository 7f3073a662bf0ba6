"""Models and training states on disk: safetensors of our own, and checkpoints of published codes (`published/`).

Imports `models`, `suites`, `records`, `machine` and `base`; the stages above it save and load through it. Public:
`weights`, `tensors`, `fit`.
"""
