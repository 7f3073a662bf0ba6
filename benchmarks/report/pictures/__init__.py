"""What a report draws: figures of images, charts of measurements; each a matplotlib figure that holds no global state.

Imports rows and columns of the report. Public: `figures`, `charts`.
"""
