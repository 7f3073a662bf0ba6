"""The plain autoencoder and the vanilla VAE, which share their encoder and decoder.

Imports `kernels` and the protocols of `models`. Public: `autoencoder.AE`, `vae.VAE` and their configurations.
"""
