"""What every other folder may use: errors, keyed streams, files, child processes, plugins, limits of the machine.

Imports nothing of this suite. Public: all of it.
"""
