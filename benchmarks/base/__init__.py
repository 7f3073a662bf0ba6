"""What every other folder may use: errors, keyed streams, whole files, child processes, plugins.

Imports nothing of this suite. Public: all of it.
"""
