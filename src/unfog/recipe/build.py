"""From a recipe to modules."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.energy import Gradient, InnerProduct
from unfog.diffusion.learned import Learned, ScheduledNetwork
from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.uncertainty import WithUncertainty
from unfog.diffusion.nn.unet import UNet, UNetConfig
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Schedule
from unfog.diffusion.times import LogUniform
from unfog.diffusion.weighting import Constant, Uncertainty
from unfog.pipeline import Pipeline
from unfog.recipe.schema import Recipe
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Conditioner, Label, Unconditional
from unfog.tasks.bound import Bound
from unfog.tasks.denoising import Denoising
from unfog.tasks.task import Task


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
    out = channels * (2 if recipe.variance.learned else 1)
    network = replace(recipe.network, in_channels=channels, out_channels=out, num_classes=count)
    return replace(recipe, network=network)


def build_network(config: UNetConfig | DiTConfig) -> nn.Module:
    """Return a fresh network; its weights are drawn from torch's generator."""
    return UNet(config) if isinstance(config, UNetConfig) else DiT(config)


def build_model(recipe: Recipe) -> nn.Module:
    """Return what a run trains, fresh: its network, together with what else is learned."""
    network = build_network(recipe.network)
    if recipe.energy:
        network = Gradient(InnerProduct(network))
    if isinstance(recipe.weight, Uncertainty):
        network = WithUncertainty(network, recipe.weight.features)
    return ScheduledNetwork(network, recipe.schedule) if isinstance(recipe.schedule, Learned) else network


def schedule_of(recipe: Recipe, model: nn.Module) -> Schedule:
    """Return the schedule of a model: what it has learned, or the recipe's."""
    return model.learner.frozen() if isinstance(model, ScheduledNetwork) else recipe.schedule


def build_denoiser(recipe: Recipe, model: nn.Module) -> NetworkDenoiser:
    """Return the denoiser of a model, its schedule being as it is now."""
    process = Gaussian(schedule_of(recipe, model))
    return NetworkDenoiser(model, process, recipe.parameterization, learned_variance=recipe.variance.learned)


def build_conditioner(recipe: Recipe) -> Conditioner:
    """Return the conditioner of a recipe that was fitted to its data."""
    classes = recipe.network.num_classes
    return Unconditional() if classes is None else Label(classes, recipe.condition.dropout)


def build_training(recipe: Recipe, model: nn.Module) -> Task:
    """Return what the trainer optimises: with a schedule that is learned the variational bound."""
    if isinstance(model, ScheduledNetwork):
        return Bound(model, recipe.parameterization, build_conditioner(recipe), recipe.times)
    return build_task(recipe, model)


def build_task(recipe: Recipe, model: nn.Module) -> Denoising:
    """Return the loss by which a model is measured, its schedule being as it is now.

    It is what was minimised; of the bound, with a schedule that is learned, the term of diffusion up to a factor, the
    mean squared error of eps over uniform log-SNRs.
    """
    times, weight = recipe.times, recipe.weight
    if isinstance(recipe.schedule, Learned):
        ends = schedule_of(recipe, model).log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
        times, weight = LogUniform(*torch.exp(-0.5 * ends).tolist()), Constant(Eps())
    return Denoising(
        build_denoiser(recipe, model),
        build_conditioner(recipe),
        times,
        weight,
        coupling=recipe.coupling,
        variance=recipe.variance,
    )


def build_pipeline(recipe: Recipe, model: nn.Module, shape: Sequence[int], classes: Sequence[str]) -> Pipeline:
    """Return a pipeline around a model.

    Args:
        recipe: the run that the network comes from.
        model: its weights.
        shape: of one example, ``(C, H, W)``.
        classes: names of the classes.
    """
    denoiser = build_denoiser(recipe, model)
    return Pipeline(denoiser, build_conditioner(recipe), Identity(), shape, recipe.sample, classes)
