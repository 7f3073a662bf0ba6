"""Speed and memory of any model, alone or in turns with another: the verb `throughput` and its suites.

Imports `training`, `storage`, `profiling`, `report`. Public: `throughput`, `suite`. Yardsticks: `baseline/`.
"""
