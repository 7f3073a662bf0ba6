"""Who watches the trials of a run: bars, lines and JSON that say how far they are, and trackers of experiments.

Trials tell what they do in `events`; a watcher takes nothing else from them, and none can stop or slow one.
"""
