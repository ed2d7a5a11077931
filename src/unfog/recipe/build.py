"""From a recipe to modules."""

from dataclasses import replace

import torch
from torch import nn

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.energy import Gradient, InnerProduct
from unfog.diffusion.learned import Learned, ScheduledNetwork
from unfog.diffusion.nn.encoder import EncoderConfig
from unfog.diffusion.nn.uncertainty import WithUncertainty
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.diffusion.parameterization import X0, Eps
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Schedule
from unfog.diffusion.times import LogUniform
from unfog.diffusion.weighting import Constant, Uncertainty
from unfog.pipeline import Pipeline
from unfog.recipe.card import DataCard
from unfog.recipe.networks import DenoiserConfig, build_network, narrowing
from unfog.recipe.schema import Recipe
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Attributes, Combined, Conditioner, Label, Unconditional
from unfog.sampling.guidance.classifier import NetworkClassifier
from unfog.tasks.augmentation import NUMBERS
from unfog.tasks.bound import Bound
from unfog.tasks.denoising import Denoising
from unfog.tasks.noisy_classification import NoisyClassification
from unfog.tasks.task import Task


def fit_to_data(recipe: Recipe, card: DataCard) -> Recipe:
    """Return the recipe with the network's channels, classes and attributes set to those of the data.

    It is told of the recipe's augmentation too.

    Raises:
        ValueError: if the recipe asks for classes or attributes that the data do not have.
    """
    condition = recipe.condition
    require(
        not condition.classes or bool(card.classes),
        "data with labels, which these have not: give a folder per class, or set condition.classes=false",
    )
    require(
        not condition.attributes or bool(card.attributes),
        "data with attributes, which these have not: set condition.attributes=false; data.path=shapes has some",
    )
    channels = card.shape[0]
    if isinstance(recipe.network, EncoderConfig):
        _, height, width = card.shape
        encoder = replace(recipe.network, in_channels=channels, classes=len(card.classes), size=(height, width))
        return replace(recipe, network=encoder)
    out = channels * (2 if recipe.variance.learned else 1)
    network = replace(
        recipe.network,
        in_channels=channels,
        out_channels=out,
        num_classes=len(card.classes) if condition.classes else None,
        attributes=tuple(len(attribute.values) for attribute in card.attributes) if condition.attributes else (),
    )
    if isinstance(network, UNetConfig):
        network = replace(network, augmentation=0 if recipe.augmentation is None else NUMBERS)
    return replace(recipe, network=network)


def notices(recipe: Recipe) -> list[str]:
    """Return what is likely to go wrong with a recipe that was fitted to its data, in sentences; mostly nothing."""
    narrow = narrowing(recipe.network)
    if narrow is None or isinstance(recipe.parameterization, X0):
        return []
    numbers, channels = narrow
    return [
        f"warning: the network makes {channels} channels of the {numbers} numbers of a patch, and noise does not pass: "
        "what predicts it, or v, will leave it in the samples; set parameterization=x0, network.patch smaller or the "
        "width larger"
    ]


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
    _denoising(recipe)
    process = Gaussian(schedule_of(recipe, model))
    return NetworkDenoiser(model, process, recipe.parameterization, learned_variance=recipe.variance.learned)


def build_conditioner(recipe: Recipe) -> Conditioner:
    """Return the conditioner of a recipe that was fitted to its data."""
    network, condition = _denoising(recipe), recipe.condition
    classes, sizes = network.num_classes, network.attributes
    if classes is not None and sizes:
        # Dropped by themselves only as far as single attributes are: the dropout of the whole is that of both.
        parts = [Label(classes, condition.dropout_each), Attributes(sizes, 0.0, condition.dropout_each)]
        return Combined(parts, condition.dropout)
    if sizes:
        return Attributes(sizes, condition.dropout, condition.dropout_each)
    return Unconditional() if classes is None else Label(classes, condition.dropout)


def _denoising(recipe: Recipe) -> DenoiserConfig:
    """Return the configuration of a network that is a denoiser.

    Raises:
        ValueError: if it is a classifier.
    """
    require(
        not isinstance(recipe.network, EncoderConfig),
        "a model to sample from, got a classifier of noisy data, which guides another one: unfog sample RUN "
        "--classifier CLASSIFIER --classifier-scale 2",
    )
    assert not isinstance(recipe.network, EncoderConfig)
    return recipe.network


def build_classifier(recipe: Recipe, model: nn.Module) -> NetworkClassifier:
    """Return the classifier of noisy data that a model is.

    Raises:
        ValueError: if it is a denoiser.
    """
    config = recipe.network
    require(isinstance(config, EncoderConfig), "a classifier of noisy data, got a model to sample from")
    assert isinstance(config, EncoderConfig)
    return NetworkClassifier(model, Gaussian(recipe.schedule), config.classes, recipe.parameterization)


def build_training(recipe: Recipe, model: nn.Module) -> Task:
    """Return what the trainer optimises: with a schedule that is learned the variational bound."""
    if isinstance(recipe.network, EncoderConfig):
        return NoisyClassification(
            model,
            recipe.network.classes,
            Gaussian(recipe.schedule),
            recipe.times,
            parameterization=recipe.parameterization,
        )
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
        augmentation=recipe.augmentation,
    )


def build_pipeline(recipe: Recipe, model: nn.Module, card: DataCard) -> Pipeline:
    """Return a pipeline around a model.

    Args:
        recipe: the run that the network comes from.
        model: its weights.
        card: of the data that it learned from.
    """
    denoiser, conditioner = build_denoiser(recipe, model), build_conditioner(recipe)
    return Pipeline(
        denoiser,
        conditioner,
        Identity(),
        card.shape,
        recipe.sample,
        card.classes,
        card.attributes,
        latent=card.latent,
    )
