"""What every other folder may use: errors, names and numbers from outside, streams, files, children, plugins, limits.

Imports nothing of this suite but `models.fields`. Public: all of it.
"""
