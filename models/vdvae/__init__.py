"""VDVAE: the very deep VAE, bottleneck blocks without norms, a group of latents in every block of the decoder.

Imports `kernels`, `models.layers` and the protocols of `models`; keys are those of the published checkpoints. Public:
the names below, `presets` and `published` (what the settings of the published code stand for).
"""

from models.vdvae.config import VDVAEConfig
from models.vdvae.model import VDVAE

__all__ = ["VDVAE", "VDVAEConfig"]
