"""Folders of diffusers, which describe their network and its schedule themselves."""

from dataclasses import fields
from typing import Any

from unfog.diffusion.checks import require
from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.schedule import Tabulated
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.gaussian import DDPM
from unfog.sampling.grid import Linspace
from unfog.sampling.guidance.bounds import Clip
from unfog.sampling.request import SampleSettings
from unfog.zoo.diffusers_config import TRANSFORMER, UNET, Scheduling, dit_config, scheduling, unet_config
from unfog.zoo.layouts import DIFFUSERS_DIT, DIFFUSERS_UNET, DIFFUSERS_UNET_OLD, Network
from unfog.zoo.published import Published
from unfog.zoo.reading import Stored

_FREE = ("dropout", "attention_dropout", "checkpoint")
"""Settings of a network that act in training alone."""


def described(stored: Stored) -> Published:
    """Return the model that a folder of diffusers describes, to be sampled by all of its levels.

    Raises:
        ValueError: if it does not describe all of it, or something that Unfog has no network or schedule for.
    """
    require(stored.config is not None, f"a folder of diffusers, got {stored.path}, which does not say what it is of")
    require(
        stored.scheduler is not None,
        f"a scheduler_config.json in {stored.path} or beside it in scheduler/, which tells the noise levels",
    )
    network, side = _network(stored)
    require(side is not None, f"the side of the pictures as sample_size in {stored.path / 'config.json'}")
    assert side is not None
    told = _scheduling(stored)
    dit = isinstance(network, DiTConfig)
    return Published(
        "from a folder of diffusers",
        "unknown",
        network,
        told.schedule,
        side,
        None,
        (DIFFUSERS_DIT,) if dit else (DIFFUSERS_UNET, DIFFUSERS_UNET_OLD),
        _sampling(told),
        parameterization=told.parameterization,
        dropout=0.1 if dit else 0.0,  # its table of classes always has the null
        latent=stored.autoencoder or network.in_channels not in (1, 3),
    )


def require_described(stored: Stored, model: Published, name: str) -> None:
    """Refuse a folder that describes another network than the model's, or another schedule.

    Raises:
        ValueError: says what differs.
    """
    network, side = _network(stored)
    if type(network) is not type(model.network):
        kinds = (type(config).__name__.removesuffix("Config") for config in (network, model.network))
        raise ValueError("{} is not {}: it is a {}, not a {}".format(stored.path, name, *kinds))
    wanted, told = (_settings(config) for config in (model.network, network))
    wrong = [f"{key} is {told.get(key)}, not {wanted[key]}" for key in wanted if told.get(key) != wanted[key]]
    if side is not None and side != model.side:
        wrong.append(f"sample_size is {side}, not {model.side}")
    if stored.scheduler is not None:
        given = _scheduling(stored)
        if given.schedule != model.schedule:
            wrong.append("its scheduler has other noise levels")
        if given.parameterization != model.parameterization:
            wrong.append(f"its network predicts {type(given.parameterization).__name__}")
    if wrong:
        raise ValueError(f"{stored.path} is not {name}: {'; '.join(wrong)}")


def _network(stored: Stored) -> tuple[Network, int | None]:
    """Return the network that a folder describes, and the side of what it diffuses where it tells that."""
    config, path = stored.config or {}, stored.path / "config.json"
    kind = config.get("_class_name")
    require(kind in (UNET, *TRANSFORMER), f"{path} of a {UNET} or {' or '.join(TRANSFORMER)}, got {kind!r}")
    try:
        return unet_config(config) if kind == UNET else dit_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _scheduling(stored: Stored) -> Scheduling:
    try:
        return scheduling(stored.scheduler or {})
    except ValueError as error:
        raise ValueError(f"the scheduler_config.json of {stored.path}: {error}") from error


def _sampling(told: Scheduling) -> SampleSettings:
    """Return how diffusers' ``DDPMScheduler`` samples, by all levels."""
    assert isinstance(told.schedule, Tabulated)
    levels = told.schedule.levels
    sampler = LearnedDDPM() if told.variance is None else DDPM(told.variance)
    return SampleSettings(
        sampler, Linspace(levels), steps=levels, bounds=None if told.clip is None else Clip(told.clip)
    )


def _settings(network: Network) -> dict[str, Any]:
    return {item.name: getattr(network, item.name) for item in fields(network) if item.name not in _FREE}
