"""Trials of a suite: what will run (`schedule`), processes of their own (`processes`), one of them (`trial`), tuning.

Imports `training`, `evaluation`, `storage`, `machine`. Public: `schedule.plan`, `processes.execute`, `tune.tune`.
"""
