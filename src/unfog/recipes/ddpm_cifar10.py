"""DDPM on CIFAR-10, as published: without classes. What ``cifar10`` says of its source holds here too."""

from dataclasses import replace

from unfog.diffusion.nn.unet_presets import ddpm_cifar10
from unfog.recipe.schema import ConditionConfig, Recipe
from unfog.recipes import cifar10


def recipe() -> Recipe:
    """Return ``cifar10`` without classes."""
    made = cifar10.recipe()
    return replace(
        made,
        name="ddpm-cifar10",
        description="32x32 photographs, DDPM as published, for days on a GPU",
        network=ddpm_cifar10(),
        condition=ConditionConfig(classes=False),
    )
