"""From a recipe to modules."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.unet import UNet, UNetConfig
from unfog.diffusion.process import Gaussian
from unfog.pipeline import Pipeline
from unfog.recipe.schema import Recipe
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Conditioner, Label, Unconditional
from unfog.tasks.denoising import Denoising


def fit_to_data(recipe: Recipe, shape: Sequence[int], classes: Sequence[str] | None) -> Recipe:
    """Return the recipe with the network's channels and classes set to those of the data.

    Args:
        recipe: the run.
        shape: of one example, ``(C, H, W)``.
        classes: names of the classes; None or none for data without labels.

    Raises:
        ValueError: if the recipe asks for classes that the data do not have.
    """
    require(
        not recipe.condition.classes or bool(classes),
        "data with labels, which these have not: give a folder per class, or set condition.classes=false",
    )
    channels, count = shape[0], len(classes or ()) if recipe.condition.classes else None
    network = replace(recipe.network, in_channels=channels, out_channels=channels, num_classes=count)
    return replace(recipe, network=network)


def build_network(config: UNetConfig | DiTConfig) -> nn.Module:
    """Return a fresh network; its weights are drawn from torch's generator."""
    return UNet(config) if isinstance(config, UNetConfig) else DiT(config)


def build_conditioner(recipe: Recipe) -> Conditioner:
    """Return the conditioner of a recipe that was fitted to its data."""
    classes = recipe.network.num_classes
    return Unconditional() if classes is None else Label(classes, recipe.condition.dropout)


def build_task(recipe: Recipe, network: nn.Module) -> Denoising:
    """Return what the trainer optimises."""
    denoiser = NetworkDenoiser(network, Gaussian(recipe.schedule), recipe.parameterization)
    return Denoising(denoiser, build_conditioner(recipe), recipe.times, recipe.weight)


def build_pipeline(recipe: Recipe, network: nn.Module, shape: Sequence[int], classes: Sequence[str]) -> Pipeline:
    """Return a pipeline around a network.

    Args:
        recipe: the run that the network comes from.
        network: its weights.
        shape: of one example, ``(C, H, W)``.
        classes: names of the classes.
    """
    denoiser = NetworkDenoiser(network, Gaussian(recipe.schedule), recipe.parameterization)
    return Pipeline(denoiser, build_conditioner(recipe), Identity(), shape, recipe.sample, classes)
