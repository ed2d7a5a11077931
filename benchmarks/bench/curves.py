"""The loss after as many examples: every library learns with its defaults and is judged on the same held-out noise.

What is judged is the error of the noise (DDPM's L_simple), which is that of x0 times ``alpha^2 / sigma^2``: every kind
of prediction becomes it, at log-SNRs that are equal for all. It is what diffusers minimises; the error of v, which ours
and denoising-diffusion-pytorch minimise, would multiply that of a network that predicts noise by 400 at the noisy end.
The weights are those of the last step, not an average, which at the start of training lags behind.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.bench.contenders import SEED, default_trainer, entrants, network_near, recipe_of, task_of
from benchmarks.bench.measure import Comparison, Plan, Section, Unit
from benchmarks.bench.training import LAPTOP, words
from benchmarks.peers.peer import parameters
from unfog.data.dataset import ArrayDataset, to_uint8
from unfog.evaluation.loss import loss_by_level
from unfog.recipe.build import build_network, build_task
from unfog.recipe.data import open_data
from unfog.tasks.denoising import Denoising

LOG_SNRS = torch.linspace(6.0, -6.0, 9, dtype=torch.float64)
HELD_OUT = 128


def error_of_noise(task: Denoising, held_out: ArrayDataset, count: int) -> float:
    """Return the squared error of the noise, averaged over fixed log-SNRs; examples and noise are the same for all."""
    schedule = task.denoiser.process.schedule
    times = schedule.time(LOG_SNRS)
    curve = loss_by_level(task, held_out, times=times, count=count, seed=SEED)
    errors = torch.tensor(curve.x0.values, dtype=torch.float64)
    alpha, sigma = schedule.scales(times)
    return float((errors * (alpha / sigma).square()).mean())


def pixels_of(dataset: ArrayDataset, count: int) -> Tensor:
    """Return the first pictures of a set as ``(count, C, H, W)`` uint8."""
    return to_uint8(dataset.gather(torch.arange(count))["x0"])


def measure(plan: Plan) -> Section:
    """Train for the same number of examples with each library's defaults, and judge them alike."""
    examples, held = plan.of(3840, 128), plan.of(HELD_OUT, 8)
    comparisons: list[Comparison] = []
    for name, channels, size in LAPTOP:
        recipe = recipe_of(name, channels, size)
        batch = recipe.train.batch_size
        recipe = replace(recipe, train=replace(recipe.train, steps=examples // batch))
        data = open_data(recipe.data)
        pictures = pixels_of(data.train, examples)
        torch.manual_seed(SEED)
        network = build_network(recipe.network)
        for _ in default_trainer(recipe, network, pictures):
            pass
        ours = error_of_noise(build_task(recipe, network), data.test, held)
        for entrant in entrants(channels, size):
            theirs = network_near(entrant.peer, parameters(network))
            training = entrant.peer.trainer(theirs, pictures, SEED, examples // 16)
            for _ in range(examples // training.batch_size):
                training.step()
            error = error_of_noise(task_of(entrant.denoiser(theirs)), data.test, held)
            what = f"recipe {name}, after {examples} examples"
            comparisons.append(
                Comparison(
                    what,
                    f"Unfog, {words(network)}",
                    f"{entrant.peer.name}, {words(theirs)}",
                    Unit.ERROR,
                    (ours,),
                    (error,),
                    goal=1.0,
                )
            )
    return Section(
        tuple(comparisons),
        notes=(
            f"Squared error of the noise, averaged over {len(LOG_SNRS)} log-SNRs from 6 to -6, of {held} held-out "
            "pictures, the same noise for all; one training each, so there is no interval.",
            "Every library with its own rate, warm-up, loss and batch, planned for this length; weights of the last "
            "step.",
        ),
    )
