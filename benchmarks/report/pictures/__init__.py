"""What a report draws: grids and figures of images, charts of measurements; a figure holds no global state.

Imports rows and columns of the report. Public: `grids`, `figures`, `charts`.
"""
