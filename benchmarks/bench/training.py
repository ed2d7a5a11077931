"""Training: samples a second of each library's own loop and of our trainer, on the same module and on our own."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.bench import machine
from benchmarks.bench.contenders import (
    DDPM_BATCH,
    SEED,
    Entrant,
    ddpm_network,
    default_trainer,
    entrants,
    images,
    network_near,
    recipe_of,
    trainer_of,
)
from benchmarks.bench.measure import Comparison, Plan, Section, Share, Unit, alternate, per
from benchmarks.peers.diffusers_peer import Diffusers
from benchmarks.peers.peer import parameters
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.nn.cost import flops
from unfog.diffusion.process import Gaussian
from unfog.recipe.networks import build_network

STEPS = 1_000_000
"""Planned length of the others' training, so that their learning rates do not fall while they are timed."""

THEIRS, SAME, PRESET, DEFAULT, MACHINE = "theirs", "same module", "preset", "defaults", "machine"
GOAL_EQUAL, GOAL_DEFAULT, GOAL_LAPTOP = 1.0, 1.35, 1.5
LAPTOP = (("mnist-small", 1, 28), ("cifar10-small", 3, 32))


@dataclass(frozen=True)
class Work:
    """Something to be timed.

    Attributes:
        run: does it once.
        samples: examples that it treats.
        gflop: operations of matrix products and convolutions in it.
    """

    run: Callable[[], object]
    samples: int
    gflop: float = 0.0


def flops_of(network: nn.Module, channels: int, size: int) -> float:
    """Return the GFLOP of a forward pass for one picture."""
    return flops(network, torch.zeros(1, channels, size, size), torch.zeros(1)) / 1e9


def words(network: nn.Module) -> str:
    """Return the size of a network in words."""
    return f"{parameters(network) / 1e6:.1f} M parameters"


def time_works(
    works: Mapping[str, Work], repeats: int
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Time works in turns: seconds a sample and GFLOP/s of each, one a round, by name."""
    seconds = alternate({name: work.run for name, work in works.items()}, repeats)
    samples = {name: per(seconds[name], work.samples) for name, work in works.items()}
    rates = {name: tuple(work.gflop / s for s in seconds[name]) for name, work in works.items()}
    return samples, rates


def product(dtype: torch.dtype) -> Work:
    """Return the matrix product that shares are taken of."""
    run, gflop = machine.product(dtype)
    return Work(run, 1, gflop)


def ddpm(plan: Plan) -> Section:
    """Train DDPM's network in float32: on equal networks, and with our recipe's settings against the others'."""
    size = plan.of(32, 16)
    comparisons: list[Comparison] = []
    shares: list[Share] = []
    for entrant in entrants(3, size):
        network, name = entrant.peer.ddpm_network(), entrant.peer.name
        works = _works(entrant, network, size)
        samples, rates = time_works(works, plan.repeats)
        for key, what, ours, goal in (
            (SAME, f"the same module, {words(network)}", f"our trainer on {name}'s module", GOAL_EQUAL),
            (PRESET, f"the same architecture, {words(ddpm_network())}", "our trainer on our module", GOAL_EQUAL),
            (DEFAULT, "DDPM's network, each with its defaults", "our recipe cifar10", GOAL_DEFAULT),
        ):
            if key in works:
                times = samples[key], samples[THEIRS]
                comparisons.append(Comparison(what, ours, name, Unit.SECONDS_A_SAMPLE, *times, goal))
        for key, what in (
            (THEIRS, f"{name}, its module"),
            (SAME, f"ours, {name}'s module"),
            (PRESET, "ours, our module"),
        ):
            if key in works:
                shares.append(Share(f"{what}, float32", rates[key], rates[MACHINE]))
    return Section(
        tuple(comparisons),
        tuple(shares),
        notes=(
            f"Batches of {DDPM_BATCH}, pictures of {size}x{size}, float32; our recipe's batch of 128 is set to that.",
            "On the same module our trainer keeps one average of the weights as the others do, in the recipe two.",
        ),
    )


def _works(entrant: Entrant, network: nn.Module, size: int) -> dict[str, Work]:
    """Return training steps on DDPM's network, and a matrix product."""
    pictures, batch = images(2 * DDPM_BATCH, 3, size), DDPM_BATCH
    recipe = recipe_of("cifar10", 3, size)
    recipe = replace(recipe, train=replace(recipe.train, batch_size=batch))
    same = entrant.denoiser(copy.deepcopy(network))
    steps: dict[str, Callable[[], object]] = {
        THEIRS: entrant.peer.trainer(network, pictures, SEED, STEPS).step,
        SAME: trainer_of(same, pictures, batch).advance,
        DEFAULT: default_trainer(recipe, build_network(recipe.network), pictures).advance,
    }
    if isinstance(entrant.peer, Diffusers):  # whose DDPM network is of the same architecture as our preset
        preset = NetworkDenoiser(ddpm_network(), Gaussian(entrant.schedule), entrant.parameterization)
        steps[PRESET] = trainer_of(preset, pictures, batch).advance
    gflop = {key: 3 * batch * flops_of(same.network, 3, size) for key in (THEIRS, SAME)}
    gflop |= {key: 3 * batch * flops_of(ddpm_network(), 3, size) for key in (PRESET, DEFAULT)}
    return {MACHINE: product(torch.float32), **{key: Work(step, batch, gflop[key]) for key, step in steps.items()}}


def laptop(plan: Plan) -> Section:
    """Train the small recipes beside the others' networks of as many parameters, each with its defaults."""
    comparisons: list[Comparison] = []
    for name, channels, size in LAPTOP:
        recipe = recipe_of(name, channels, size)
        network = build_network(recipe.network)
        size_of = {"ours": words(network)}
        ours = default_trainer(recipe, network, images(2 * recipe.train.batch_size, channels, size))
        works = {"ours": Work(ours.advance, recipe.train.batch_size)}
        for entrant in entrants(channels, size):
            theirs = network_near(entrant.peer, parameters(network))
            training = entrant.peer.trainer(theirs, images(256, channels, size), SEED, STEPS)
            steps = plan.of(4, 1)
            works[entrant.peer.name] = Work(_repeated(training.step, steps), steps * training.batch_size)
            size_of[entrant.peer.name] = words(theirs)
        samples, _ = time_works(works, plan.repeats)
        comparisons += [
            Comparison(
                f"recipe {name}, each with its defaults",
                f"Unfog, {size_of['ours']}",
                f"{other}, {size_of[other]}",
                Unit.SECONDS_A_SAMPLE,
                samples["ours"],
                samples[other],
                GOAL_LAPTOP,
            )
            for other in works
            if other != "ours"
        ]
    return Section(
        tuple(comparisons),
        notes=(
            "Every library trains its own kind of network at the same number of parameters, with its own batch "
            "(ours 128, the others' 16); without classes.",
        ),
    )


def _repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run
