"""Models and the one ELBO engine; knows no data set, file, clock or argument parser, and imports `kernels` alone.

A model lies in a folder of its own and imports no other model; `registry.MODELS` is the list of them. Public:
`registry`, `presets`, `output`, `likelihoods`, `distributions`, `elbo`, `fields`.
"""
