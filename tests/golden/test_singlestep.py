"""Trajectories of the singlestep samplers against those of diffusers' schedulers: same eps, same points, same noise.

As in ``test_schedulers``, the "network" is the exact eps of a mixture of Gaussians in float64, and what diffusers keeps
in float32 is replaced by float64 numbers, its sigmas and times among them: what is compared is the algorithms.

Where there is nothing to agree with, or only after a change:

- DPMSolverSinglestepScheduler takes the nodes of its grid for the points between ours: its step of order 2 spans two
  intervals. It is given our points as nodes. Its integer timesteps could not lie there.
- The same scheduler, order 3, "midpoint": it forms the middle stage with the weight of the midpoint rule, which is of
  third order too but not what is published. The published stage is its "heun", the published last stage its "midpoint".
- The same scheduler, "dpmsolver": it cannot go to sigma = 0, which is Euler's step, so the last state is not compared.
- The same scheduler, "sde-dpmsolver++": it draws the noise of the middle and that of the end independently, with which
  the method is of first order only. It is given ours, which are increments of one path. So is DPMSolverSDEScheduler,
  whose own path is Brownian in sigma; ours is that of the reverse SDE.
- EulerDiscreteScheduler and EDMEulerScheduler with ``s_churn``: they raise the noise after the network was asked, and
  use its answer for a state that it has not seen. KarrasVeScheduler raises it before, as algorithm 2 of EDM says; it
  knows no end of the schedule, so the window is kept below the first level, which ours does not leave upwards.
- k-diffusion is no dependency; its algorithms are those of KDPM2(Ancestral), EulerAncestral and DPMSolverSDE here, and
  "DPM++ 2S a", which diffusers lacks, is written out in ``sampling/test_singlestep``.
"""

import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Schedule, Tabulated, VarianceExploding, linear, scaled_linear
from unfog.sampling.gaussian import DDIM, euler
from unfog.sampling.grid import Karras, Leading, Trailing
from unfog.sampling.noise import noises
from unfog.sampling.sampler import TableSampler, sample
from unfog.sampling.singlestep import DPMSolver, DPMSolverPP, DPMSolverPPSDE, EDMChurn

with warnings.catch_warnings():
    # Importing diffusers warns of what its own dependencies have deprecated.
    warnings.simplefilter("ignore")
    from diffusers import (
        DPMSolverSinglestepScheduler,
        EDMEulerScheduler,
        EulerAncestralDiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
    )
    from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

pytestmark = [
    # diffusers turns tensors into arrays in a way that numpy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver` is deprecated:FutureWarning"),
]

LEVELS = 1000
RNG = Rng.of(23, 3)
TABLES = {"ddpm": linear(), "stable diffusion": scaled_linear()}
GRIDS = {"trailing": Trailing(), "leading": Leading()}

both_tables = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
both_grids = pytest.mark.parametrize("spacing", GRIDS)
steps_of_each = pytest.mark.parametrize("steps", [2, 11])


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-0.8, 0.3], [0.6, 0.9], [0.1, -0.5]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.05)


def eps_of(table: Tabulated) -> Callable[[Tensor, Tensor], Tensor]:
    denoiser = data(table)

    def eps(x_t: Tensor, index: Tensor) -> Tensor:
        t = table.time_of(index)
        return (x_t.double() - table.alpha(t) * denoiser(x_t.double(), t).x0) / table.sigma(t)

    return eps


def prior(schedule: Schedule) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=RNG, dtype=torch.float64)


def points(sampler: TableSampler, schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return the times at which a sampler evaluates, and sigma / alpha there."""
    t = torch.tensor([row.t for row in sampler.table(schedule, times)], dtype=torch.float64)
    return t, torch.exp(-0.5 * schedule.log_snr(t))


def draws(sampler: TableSampler, schedule: Schedule, times: Tensor) -> Iterator[Tensor]:
    """Yield the noise that our sampler injects, then zeros for steps that want none."""
    x = prior(schedule)
    yield from noises(sampler.table(schedule, times), x, RNG)
    while True:
        yield torch.zeros_like(x)


def doubled(values: Tensor) -> Tensor:
    """Return values in the order in which schedulers of two evaluations a step keep them: all but the ends twice."""
    return torch.cat([values[:1], values[1:-1].repeat_interleave(2), values[-1:]])


@both_tables
@both_grids
@steps_of_each
@pytest.mark.parametrize(
    ("sampler", "algorithm"),
    [
        *((DPMSolver(order), "dpmsolver") for order in (1, 2, 3)),
        *((DPMSolverPP(order), "dpmsolver++") for order in (1, 2, 3)),
        (DPMSolverPPSDE(), "sde-dpmsolver++"),
    ],
    ids=lambda value: repr(value) if isinstance(value, TableSampler) else "",
)
def test_singlestep_dpm_solvers_agree(
    monkeypatch: pytest.MonkeyPatch, table: Tabulated, spacing: str, steps: int, sampler: TableSampler, algorithm: str
) -> None:
    order, times = sampler.order, GRIDS[spacing].times(table, steps)
    at, ratio = points(sampler, table, times)
    final = "sigma_min" if algorithm == "dpmsolver" else "zero"
    scheduler = DPMSolverSinglestepScheduler(
        LEVELS, solver_order=order, algorithm_type=algorithm, final_sigmas_type=final
    )
    scheduler.set_timesteps(len(at))
    scheduler.set_begin_index(0)
    scheduler.sigmas = torch.cat([ratio, torch.zeros(1, dtype=torch.float64)])
    scheduler.order_list = [*range(1, order + 1)] * (steps - 1) + [1]
    noise = draws(sampler, table, times)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_dpmsolver_singlestep.randn_tensor", lambda *args, **options: next(noise)
    )
    eps, x, found = eps_of(table), prior(table), list[Tensor]()
    for t, stage in zip(table.index(at), scheduler.order_list, strict=True):
        scheduler.register_to_config(solver_type="heun" if order == 3 and stage == 2 else "midpoint")
        x = scheduler.step(eps(x, t), t, x).prev_sample
        found.append(x)
    expected = [step.x for step in sampler.steps(data(table), prior(table), times, rng=RNG)]
    compared = len(at) - 1 if algorithm == "dpmsolver" else len(at)
    # Weights of up to 1e2 on differences of eps multiply roundings of 1e-13.
    torch.testing.assert_close(found[:compared], expected[:compared], rtol=0, atol=1e-9)


@both_tables
@both_grids
@steps_of_each
def test_dpm2_agrees(table: Tabulated, spacing: str, steps: int) -> None:
    sampler, times = DPMSolver(2), GRIDS[spacing].times(table, steps)
    at, ratio = points(sampler, table, times)
    scheduler = KDPM2DiscreteScheduler(LEVELS, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    nodes, middles, zero = ratio[::2], ratio[1::2], torch.zeros(1, dtype=torch.float64)
    scheduler.sigmas = doubled(torch.cat([nodes, zero]))
    # Its interpolated sigma of a step is kept with the node that the step leads to.
    scheduler.sigmas_interpol = doubled(torch.cat([zero, middles, zero]))
    eps, x = eps_of(table), prior(table) * (1 + ratio[0] ** 2).sqrt()
    for t in table.index(at):
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    expected = sample(data(table), sampler, times, prior(table), rng=RNG)
    # States of up to 160 in its units, and weights of up to 1e2 on differences.
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


@both_tables
@both_grids
@steps_of_each
def test_ancestral_dpm2_agrees(monkeypatch: pytest.MonkeyPatch, table: Tabulated, spacing: str, steps: int) -> None:
    sampler, times = DPMSolver(2, eta=1.0), GRIDS[spacing].times(table, steps)
    at, ratio = points(sampler, table, times)
    scheduler = KDPM2AncestralDiscreteScheduler(LEVELS, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    zero = torch.zeros(1, dtype=torch.float64)
    nodes, following, middles = ratio[::2], torch.cat([ratio[2::2], zero]), torch.cat([ratio[1::2], zero])
    up = following * (1 - (following / nodes) ** 2).sqrt()
    scheduler.sigmas = doubled(torch.cat([nodes, zero]))
    scheduler.sigmas_interpol = middles.repeat_interleave(2)
    scheduler.sigmas_up = up.repeat_interleave(2)
    scheduler.sigmas_down = (following**2 - up**2).sqrt().repeat_interleave(2)
    noise = draws(sampler, table, times)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete.randn_tensor",
        lambda *args, **options: next(noise),
    )
    eps, x = eps_of(table), prior(table) * (1 + ratio[0] ** 2).sqrt()
    for t in table.index(at):
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    expected = sample(data(table), sampler, times, prior(table), rng=RNG)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


@both_tables
@both_grids
@steps_of_each
def test_ancestral_euler_is_ddim(monkeypatch: pytest.MonkeyPatch, table: Tabulated, spacing: str, steps: int) -> None:
    sampler, times = DDIM(1.0), GRIDS[spacing].times(table, steps)
    at, ratio = points(sampler, table, times)
    scheduler = EulerAncestralDiscreteScheduler(LEVELS, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    scheduler.sigmas = torch.cat([ratio, torch.zeros(1, dtype=torch.float64)])
    noise = draws(sampler, table, times)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor", lambda *args, **options: next(noise)
    )
    eps, x = eps_of(table), prior(table) * (1 + ratio[0] ** 2).sqrt()
    for t in table.index(at):
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    expected = sample(data(table), sampler, times, prior(table), rng=RNG)
    # It rounds states of up to 160 to float32 in each step: 160 * 6e-8 = 1e-5.
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


@both_tables
@both_grids
@steps_of_each
def test_dpm_solver_sde_agrees(monkeypatch: pytest.MonkeyPatch, table: Tabulated, spacing: str, steps: int) -> None:
    # Its module wants torchsde, for the noise alone, which it is given.
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    sampler, times = DPMSolverPPSDE(), GRIDS[spacing].times(table, steps)
    at, ratio = points(sampler, table, times)
    scheduler = module.DPMSolverSDEScheduler(LEVELS, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    scheduler.sigmas = doubled(torch.cat([ratio[::2], torch.zeros(1, dtype=torch.float64)]))
    noise = draws(sampler, table, times)
    scheduler.noise_sampler = lambda sigma, sigma_next: next(noise)
    eps, x = eps_of(table), prior(table) * (1 + ratio[0] ** 2).sqrt()
    for t, sigma in zip(table.index(at), ratio, strict=True):
        x = scheduler.step(eps(x / (1 + sigma**2).sqrt(), t), t, x).prev_sample
    expected = sample(data(table), sampler, times, prior(table), rng=RNG)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [4, 18])
@pytest.mark.parametrize("sampler", [EDMChurn(), EDMChurn(0.5, 0.1, 2.0, noise=1.003)], ids=repr)
def test_edms_stochastic_sampler_agrees(monkeypatch: pytest.MonkeyPatch, sampler: EDMChurn, steps: int) -> None:
    schedule = VarianceExploding()
    times = Karras().times(schedule, steps)
    sigmas = (80.0 * times).tolist()
    scheduler = KarrasVeScheduler(
        s_noise=sampler.noise, s_churn=sampler.churn, s_min=sampler.sigma_min, s_max=sampler.sigma_max
    )
    scheduler.set_timesteps(steps)
    noise, denoise = draws(sampler, schedule, times), data(schedule)
    raises = iter([sampler.sigma_min <= sigma <= sampler.sigma_max for sigma in sigmas[:-1]])
    monkeypatch.setattr(
        "diffusers.schedulers.deprecated.scheduling_karras_ve.randn_tensor",
        lambda *args, **options: next(noise) if next(raises) else torch.zeros(3, 2, dtype=torch.float64),
    )

    def score(x: Tensor, sigma: float) -> Tensor:
        return (denoise(x, torch.tensor(sigma / 80.0, dtype=torch.float64)).x0 - x) / sigma

    x = prior(schedule)
    for sigma, following in pairwise(sigmas):
        hat, sigma_hat = scheduler.add_noise_to_input(x, sigma)
        first = scheduler.step(score(hat, sigma_hat), sigma_hat, following, hat)
        x = first.prev_sample
        if following > 0:
            again = score(x, following)
            x = scheduler.step_correct(again, sigma_hat, following, hat, x, first.derivative).prev_sample
    expected = sample(denoise, sampler, times, prior(schedule), rng=RNG)
    # Heun's weights of up to 1e2 on differences of estimates multiply roundings of states of size 80.
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [4, 18])
def test_edms_euler_agrees(steps: int) -> None:
    schedule = VarianceExploding()
    times = Karras().times(schedule, steps)
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas.double(), 80.0 * times, rtol=1e-6, atol=0)
    scheduler.sigmas = 80.0 * times
    x, denoise = prior(schedule), data(schedule)
    for t, time in zip(scheduler.timesteps, times[:-1], strict=True):
        sigma = 80.0 * time
        skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25).sqrt()
        x = scheduler.step((denoise(x, time).x0 - skip * x) / out, t, x, return_dict=False)[0]
    expected = sample(denoise, euler(), times, prior(schedule), rng=RNG)
    # It rounds states of up to 80 to float32 in each step.
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
