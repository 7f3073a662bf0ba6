"""Plain implementations, as one would first write them: yardsticks that ours is timed against.

Imports `models` alone, and of it configurations and protocols. Public: `registry`.
"""
