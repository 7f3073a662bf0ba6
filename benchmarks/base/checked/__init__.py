"""What comes from outside, held to what it may be: numbers, names, tables, JSON, arguments of a command line.

Imports `base.errors`, `base.files` and `models.fields`. Public: all of it.
"""
