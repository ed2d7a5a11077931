"""The networks that a recipe can name."""

from torch import nn

from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.encoder import Encoder, EncoderConfig
from unfog.diffusion.nn.hybrid import Hybrid, HybridConfig
from unfog.diffusion.nn.unet import UNet
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.diffusion.nn.uvit import UViT, UViTConfig

DenoiserConfig = UNetConfig | DiTConfig | UViTConfig | HybridConfig
"""Configurations of networks that a denoiser is made of."""

Network = DenoiserConfig | EncoderConfig
"""Those and the classifier of noisy data."""


def classes_of(config: Network) -> int | None:
    """Return how many classes a network tells apart or is told; None without classes."""
    return config.classes if isinstance(config, EncoderConfig) else config.num_classes


def build_network(config: Network) -> nn.Module:
    """Return a fresh network; its weights are drawn from torch's generator."""
    match config:
        case UNetConfig():
            return UNet(config)
        case DiTConfig():
            return DiT(config)
        case UViTConfig():
            return UViT(config)
        case HybridConfig():
            return Hybrid(config)
        case EncoderConfig():
            return Encoder(config)
