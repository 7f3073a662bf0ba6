"""What every other folder may use: errors, names and numbers from outside, keyed streams, files, children, plugins.

Imports nothing of this suite but `models.fields`. Public: all of it.
"""
