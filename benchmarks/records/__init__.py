"""Records of trials as JSON, the catalogue of metrics, and uncertainty: what was measured, as data.

Imports `base` alone, and no torch, so that reports are rebuilt anywhere. Public: `record`, `catalogue`, `uncertainty`.
"""
