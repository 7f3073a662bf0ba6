"""Images of one's own, decoded once: an array of bytes in the user's cache folder that every process maps into memory.

Imports `base`, the folder above and `kernels.cpu.build`. Public: `pictures` says what is to be decoded, `store` gives
it back; `decoder` reads with many processes, `sinks` take what they read, `entry` is what lies in the cache.
"""
