"""Tensor operations a VAE needs; knows no VAE."""
