"""NVAE: the deep hierarchical VAE, and the residual VAE made of the same cells.

Imports `kernels`, `models.layers` and the protocols of `models`; keys are those of the published checkpoints. Public:
the names below, `presets` and `published` (what the arguments of the published code stand for).
"""

from models.nvae.config import NVAEConfig, ResidualVAEConfig
from models.nvae.model import NVAE, ResidualVAE

__all__ = ["NVAE", "NVAEConfig", "ResidualVAE", "ResidualVAEConfig"]
