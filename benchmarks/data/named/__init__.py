"""Published sets of one's own files: in whatever form they lie in the folder of downloads, in their published splits.

Imports `base` and the folder above.
"""
