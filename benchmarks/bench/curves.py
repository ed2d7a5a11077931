"""The loss after as many examples, and after as much time: every library with its defaults, the same held-out noise.

What is judged is the error of the noise (DDPM's L_simple), which is that of x0 times ``alpha^2 / sigma^2``: every kind
of prediction becomes it, at log-SNRs that are equal for all. It is what diffusers minimises; the error of v, which ours
and denoising-diffusion-pytorch minimise, would multiply that of a network that predicts noise by 400 at the noisy end.
The weights are those of the last step, not an average, which at the start of training lags behind.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.bench.contenders import (
    DDPM_BATCH,
    SEED,
    Entrant,
    default_trainer,
    entrants,
    network_near,
    recipe_of,
    task_of,
)
from benchmarks.bench.measure import Comparison, Plan, Section, Unit
from benchmarks.bench.training import LAPTOP, words
from benchmarks.peers.peer import parameters
from unfog.data.dataset import Dataset, to_uint8
from unfog.evaluation.loss import loss_by_level
from unfog.recipe.build import build_task
from unfog.recipe.data import Data, open_data
from unfog.recipe.networks import build_network
from unfog.recipe.schema import Recipe
from unfog.tasks.denoising import Denoising

LOG_SNRS = torch.linspace(6.0, -6.0, 9, dtype=torch.float64)
HELD_OUT = 128


def error_of_noise(task: Denoising, held_out: Dataset, count: int) -> float:
    """Return the squared error of the noise, averaged over fixed log-SNRs; examples and noise are the same for all."""
    schedule = task.denoiser.process.schedule
    times = schedule.time(LOG_SNRS)
    curve = loss_by_level(task, held_out, times=times, count=count, seed=SEED)
    errors = torch.tensor(curve.x0.values, dtype=torch.float64)
    alpha, sigma = schedule.scales(times)
    return float((errors * (alpha / sigma).square()).mean())


def pixels_of(dataset: Dataset, count: int) -> Tensor:
    """Return the first pictures of a set as ``(count, C, H, W)`` uint8."""
    return to_uint8(dataset.gather(torch.arange(count))["x0"])


def ours_after(recipe: Recipe, data: Data, steps: int, held: int) -> tuple[float, float]:
    """Train a recipe for so many steps; return the seconds that took and the error of the noise."""
    recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    pictures = pixels_of(data.train, min(len(data.train), steps * recipe.train.batch_size))
    torch.manual_seed(SEED)
    network = build_network(recipe.network)
    start = time.perf_counter()
    for _ in default_trainer(recipe, network, pictures):
        pass
    return time.perf_counter() - start, error_of_noise(build_task(recipe, network), data.test, held)


def theirs_after(entrant: Entrant, network: nn.Module, data: Data, examples: int, held: int) -> tuple[float, float]:
    """Train a network of another library for so many examples; return the seconds and the error of the noise."""
    training = entrant.peer.trainer(network, pixels_of(data.train, examples), SEED, examples // DDPM_BATCH)
    start = time.perf_counter()
    for _ in range(examples // training.batch_size):
        training.step()
    return time.perf_counter() - start, error_of_noise(task_of(entrant.denoiser(network)), data.test, held)


def measure(plan: Plan) -> Section:
    """Train with each library's defaults, and judge them alike after as many examples and after as much time."""
    examples, held = plan.of(3840, 128), plan.of(HELD_OUT, 8)
    comparisons: list[Comparison] = []
    for name, channels, size in LAPTOP:
        recipe = recipe_of(name, channels, size)
        data = open_data(recipe.data)
        ours = build_network(recipe.network)
        others = [(entrant, network_near(entrant.peer, parameters(ours))) for entrant in entrants(channels, size)]
        found = [theirs_after(entrant, network, data, examples, held) for entrant, network in others]
        steps = examples // recipe.train.batch_size
        seconds, error = ours_after(recipe, data, steps, held)
        budget = min(took for took, _ in found)
        spent, later = ours_after(recipe, data, max(steps, int(steps * budget / seconds)), held)
        for (entrant, network), (took, theirs) in zip(others, found, strict=True):
            equal = f"recipe {name}, after {examples} examples"
            timely = f"recipe {name}, after {spent:.0f} s, theirs after {took:.0f} s"
            for what, value in ((equal, error), (timely, later)):
                sides = f"Unfog, {words(ours)}", f"{entrant.peer.name}, {words(network)}"
                comparisons.append(Comparison(what, *sides, Unit.ERROR, (value,), (theirs,), goal=1.0))
    return Section(
        tuple(comparisons),
        notes=(
            f"Squared error of the noise, averaged over {len(LOG_SNRS)} log-SNRs from 6 to -6, of {held} held-out "
            "pictures, the same noise for all; one training each, so there is no interval.",
            "Every library with its own rate, warm-up, loss and batch, planned for this length; weights of the last "
            "step. In time ours stops about when the faster of the others has seen its examples.",
        ),
    )
