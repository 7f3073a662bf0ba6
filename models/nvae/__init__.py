"""NVAE: the deep hierarchical VAE, and the residual VAE made of the same cells."""

from models.nvae.config import NVAEConfig, ResidualVAEConfig
from models.nvae.model import NVAE, ResidualVAE

__all__ = ["NVAE", "NVAEConfig", "ResidualVAE", "ResidualVAEConfig"]
