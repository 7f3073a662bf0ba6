"""Readers of checkpoints that published codes wrote, a file a code; `registry.READERS` is the list of them.

Imports the model that a code published, never what writes our own files. Public: `registry.read_published`, and
`checkpoint`, which says what a reader is.
"""
