"""Bits per dimension by the probability-flow ODE: no bound, but the model's own density of dequantised pictures.

Noise uniform over the width of a level is added once to each picture; the density of the levels is at least as large as
the exponential of the mean log-density found so (Theis, van den Oord, Bethge 2016), with one draw an unbiased estimate
of that mean. The trace is estimated by probes of random signs. The interval is over examples and contains both.

Source:
    Song et al. 2021 (arXiv 2011.13456), section 4.3: uniform dequantisation, Hutchinson's trace, an adaptive solver.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from unfog.data.dataset import Dataset
from unfog.diffusion.bound import require_levels
from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Denoiser
from unfog.diffusion.random import Rng, seed_of
from unfog.evaluation.loss import chosen_examples, evaluating
from unfog.metrics.interval import Score, mean
from unfog.sampling.adaptive import RK45
from unfog.sampling.conditioning.conditioner import Conditioner
from unfog.sampling.likelihood import SOLVER, dequantized, log_density


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        count: most examples, at least 2; a fixed random choice of the set.
        probes: of the trace, for each example, at least 1.
        seed: of the choice, the dequantisation and the probes.
        batch_size: examples at a time; it changes speed and memory only.
        solver: how the ODE is integrated.
    """

    count: int = 256
    probes: int = 1
    seed: int = 0
    batch_size: int = 64
    solver: RK45 = SOLVER

    def __post_init__(self) -> None:
        require(self.count >= 2, f"a count of at least 2 examples to tell a spread from, got {self.count}")
        require(self.probes >= 1, f"at least 1 of probes for each example, got {self.probes}")
        require(self.batch_size >= 1, f"a batch_size of at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of a set.

    Attributes:
        dataset: name of the set.
        count: examples.
        dimensions: of one example.
        conditions: names of the conditions that were given; of each example the density given its own is measured.
        effort: how it was measured.
        sigma: standard deviation of the noise that the data are taken to have, where the integration begins.
        bits: per dimension of 256 levels.
        nats: for a whole example.
        evaluations: of the denoiser, mean over the examples; as many backward passes with each probe.
    """

    dataset: str
    count: int
    dimensions: int
    conditions: tuple[str, ...]
    effort: Effort
    sigma: float
    bits: Score
    nats: Score
    evaluations: float

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold."""
        return asdict(self)


def measure_likelihood(
    denoiser: Denoiser, conditioner: Conditioner, dataset: Dataset, effort: Effort | None = None
) -> Likelihood:
    """Measure the negative log-likelihood of a set by the probability-flow ODE.

    Args:
        denoiser: of a Gaussian process, differentiable in its input.
        conditioner: conditions are given, never dropped.
        dataset: pictures of 8 bits.
        effort: how much is measured.

    Raises:
        ValueError: if the data are not of 8 bits.
        FloatingPointError: if the ODE cannot be integrated to the accuracy asked for.
    """
    effort = effort or Effort()
    ids = chosen_examples(dataset, effort.count, effort.seed)
    device = next(denoiser.parameters(), ids).device
    bits, evaluations, names, sigma = list[torch.Tensor](), list[torch.Tensor](), tuple[str, ...](), 0.0
    with evaluating(denoiser):
        for some in torch.split(ids, effort.batch_size):
            values = {name: value.to(device) for name, value in dataset.gather(some).items()}
            x0 = values["x0"].float()
            require_levels(x0)
            cond = conditioner(values)
            rng = Rng.of(seed_of("likelihood", effort.seed), some, device=device)
            found = log_density(
                denoiser, dequantized(x0, rng=rng), cond, probes=effort.probes, rng=rng, solver=effort.solver
            )
            bits.append(found.bits().cpu())
            evaluations.append(found.evaluations.cpu())
            names, sigma = tuple(cond), found.sigma
    info, all_bits = dataset.info, torch.cat(bits)
    size = math.prod(info.fields["x0"].shape)
    note = f"{len(ids)} examples of {info.name}, {effort.probes} probes each, seed {effort.seed}"
    note += f", given {', '.join(names)}" if names else ""
    return Likelihood(
        dataset=info.name,
        count=len(ids),
        dimensions=size,
        conditions=names,
        effort=effort,
        sigma=sigma,
        bits=mean(all_bits, note=f"negative log-likelihood by the ODE in bits per dimension, {note}"),
        nats=mean(all_bits * size * math.log(2.0), note=f"negative log-likelihood by the ODE in nats, {note}"),
        evaluations=torch.cat(evaluations).double().mean().item(),
    )
