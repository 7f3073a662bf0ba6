"""Metrics: tensors or callables in, values out; they never see a config."""
