"""The verbs on the latents of images: `encode` writes them to a file, `decode` makes images of such a file.

`reconstruct`, `interpolate` and `traverse` show what a model makes of images and of changes to their latents.

Public: a file a verb, imported when it is called.
"""
