"""Sampling: time for the same number of evaluations, on the same module and with each library's defaults."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from benchmarks.bench.contenders import SEED, entrants, network_near, recipe_of
from benchmarks.bench.measure import Comparison, Plan, Section, Unit
from benchmarks.bench.training import LAPTOP, Work, time_works, words
from benchmarks.peers.diffusers_peer import Diffusers, Fast
from benchmarks.peers.peer import parameters
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.pipeline import Pipeline
from unfog.recipe.build import build_pipeline
from unfog.recipe.card import DataCard
from unfog.recipe.networks import build_network
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleRequest, SampleSettings
from unfog.sampling.sampler import Sampler

EVALUATIONS = 10
GOAL_EQUAL, GOAL_DEFAULT, GOAL_LAPTOP = 1.0, 1.6, 2.0
_OWN = (
    "The number of evaluations is the same on both sides. Left to its defaults each library makes another: our small "
    "recipes 20, the scripts of both others 1000 (diffusers' DDIMPipeline 50)."
)


def pipeline_of(denoiser: NetworkDenoiser, channels: int, size: int, method: Sampler) -> Pipeline:
    """Return our pipeline around a denoiser."""
    settings = SampleSettings(method, Trailing(), steps=EVALUATIONS)
    return Pipeline(denoiser, Unconditional(), Identity(), (channels, size, size), settings)


def draw(pipeline: Pipeline, count: int) -> Tensor:
    """Draw samples in one batch."""
    return pipeline.sample(SampleRequest(count, seed=SEED, batch_size=count)).x


def from_recipe(name: str, channels: int, size: int) -> tuple[Pipeline, nn.Module]:
    """Return the pipeline of a recipe at the common number of evaluations, and its network."""
    recipe = recipe_of(name, channels, size)
    recipe = replace(recipe, sample=SampleSettings(DPMSolverPP2M(), Trailing(), steps=EVALUATIONS))
    network = build_network(recipe.network)
    return build_pipeline(recipe, network, DataCard("", "", 0, (channels, size, size), ())), network


def ddpm(plan: Plan) -> Section:
    """Sample from DDPM's network in float32 with the same evaluations on both sides."""
    size, count = plan.of(32, 16), plan.of(4, 1)
    own, _ = from_recipe("cifar10", 3, size)
    comparisons: list[Comparison] = []
    for entrant in entrants(3, size):
        peer, network = entrant.peer, entrant.peer.ddpm_network()
        denoiser = entrant.denoiser(network)
        works: dict[str, Callable[[], object]] = {
            "their DDIM": partial(peer.sample, network, count, EVALUATIONS, SEED),
            "our DDIM": partial(draw, pipeline_of(denoiser, 3, size, DDIM()), count),
            "defaults": partial(draw, own, count),
        }
        if isinstance(peer, Diffusers):
            solver = replace(peer, fast=Fast.DPM_SOLVER)
            works["their DPM-Solver++"] = partial(solver.sample, network, count, EVALUATIONS, SEED)
            works["our DPM-Solver++"] = partial(draw, pipeline_of(denoiser, 3, size, DPMSolverPP2M()), count)
        samples, _ = time_works({name: Work(run, count) for name, run in works.items()}, plan.repeats)
        for ours, theirs, what, goal in (
            ("our DDIM", "their DDIM", f"the same module ({words(network)}), DDIM", GOAL_EQUAL),
            ("our DPM-Solver++", "their DPM-Solver++", f"the same module ({words(network)}), DPM-Solver++", GOAL_EQUAL),
            ("defaults", "their DDIM", "DDPM's network, our recipe cifar10 and its module", GOAL_DEFAULT),
        ):
            if ours in works:
                times = samples[ours], samples[theirs]
                comparisons.append(Comparison(what, "Unfog", peer.name, Unit.SECONDS_A_SAMPLE, *times, goal))
    return Section(
        tuple(comparisons), notes=(f"{EVALUATIONS} evaluations, batches of {count}, {size}x{size}, float32.", _OWN)
    )


def laptop(plan: Plan) -> Section:
    """Sample from the networks of the small recipes and from the others' of as many parameters."""
    count = plan.of(32, 1)
    comparisons: list[Comparison] = []
    for name, channels, size in LAPTOP:
        own, network = from_recipe(name, channels, size)
        works: dict[str, Callable[[], object]] = {"Unfog": partial(draw, own, count)}
        said = {"Unfog": words(network)}
        for entrant in entrants(channels, size):
            theirs = network_near(entrant.peer, parameters(network))
            said[entrant.peer.name] = words(theirs)
            works[entrant.peer.name] = partial(entrant.peer.sample, theirs, count, EVALUATIONS, SEED)
        samples, _ = time_works({key: Work(run, count) for key, run in works.items()}, plan.repeats)
        comparisons += [
            Comparison(
                f"recipe {name}, each with its own network",
                f"Unfog, {said['Unfog']}",
                f"{other}, {said[other]}",
                Unit.SECONDS_A_SAMPLE,
                samples["Unfog"],
                samples[other],
                GOAL_LAPTOP,
            )
            for other in works
            if other != "Unfog"
        ]
    return Section(tuple(comparisons), notes=(f"{EVALUATIONS} evaluations, batches of {count}, float32.", _OWN))
