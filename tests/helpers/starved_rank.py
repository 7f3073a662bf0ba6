"""A plugin: the rank of STARVED_RANK finds no memory for more than STARVED_MOST images of a step at a time."""

import os
import sys

from models.vanilla.vae import VAE


def _rank():
    return sys.argv[sys.argv.index("--rank") + 1] if "--rank" in sys.argv else "0"


def _starved(forward):
    def starved(self, x, *arguments):
        if self.training and len(x) > int(os.environ["STARVED_MOST"]):
            raise MemoryError
        return forward(self, x, *arguments)

    return starved


if "trial" in sys.argv and _rank() == os.environ["STARVED_RANK"]:
    VAE.forward = _starved(VAE.forward)
