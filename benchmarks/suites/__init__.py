"""Suites: one table a TOML file, read into frozen dataclasses; a trial's configuration, its hash, presets as rows.

Imports `models` for configurations and registries, and `benchmarks.base`. Public: `config`, `presets`.
"""
