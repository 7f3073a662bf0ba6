"""The verbs on the latents of images: `encode` writes them to a file, `decode` makes images of such a file.

Public: a file a verb, imported when it is called.
"""
