"""Photographs of flowers at 128x128, for a processor without accelerator: colours and shapes, not details."""

from dataclasses import replace

from unfog.diffusion.curves import Shifted
from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.unet import UNetConfig
from unfog.diffusion.schedule import Cosine
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe
from unfog.recipes import mnist_small


def recipe() -> Recipe:
    """Return ``mnist-small`` for large pictures: folded 8x8, with a noisier schedule (Hoogeboom et al. 2023)."""
    small = mnist_small.recipe()
    return replace(
        small,
        name="flowers128-small",
        description="128x128 photographs of five flowers, class-conditional, in half an hour on two processor cores",
        data=DataConfig("flowers128", size=128, channels=3, flip=True),
        schedule=Shifted.for_size(Cosine(), 128),
        network=UNetConfig(
            in_channels=3,
            out_channels=3,
            widths=(48, 96, 192),
            blocks=(1, 1, 1),
            attention=(1, 2),
            head_dim=32,
            patch=8,
            resample=Resample.POOL,
            num_classes=5,
        ),
        train=replace(small.train, steps=3_000, batch_size=64),
        evaluation=EvaluationConfig(samples=700),
    )
