"""Scores of trained models: all metrics on a test split (`evaluate`), the likelihood of given images (`per_image`).

Imports `metrics`, `storage`, `data`, `suites`, `records` and `base`; knows no training. Public: both files.
"""
