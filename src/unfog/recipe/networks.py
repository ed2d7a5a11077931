"""The networks that a recipe can name."""

from math import prod

from torch import nn

from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.encoder import Encoder, EncoderConfig
from unfog.diffusion.nn.hybrid import Hybrid, HybridConfig
from unfog.diffusion.nn.tokens import sides_of
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


def narrowing(config: Network) -> tuple[int, int] | None:
    """Return how many numbers a patch has and how many channels a network makes of them, if these are fewer.

    Such a network answers with what so few channels can say of a patch: enough of a picture, but not of noise.
    """
    match config:
        case UNetConfig():
            numbers, channels = config.in_channels * prod(config.sides), config.stem
        case DiTConfig() | UViTConfig():
            numbers, channels = config.in_channels * prod(sides_of(config.patch, config.axes)), config.dim
        case _:
            return None  # the finest level of a hybrid has every pixel, and a classifier predicts no picture
    return (numbers, channels) if channels < numbers else None


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
