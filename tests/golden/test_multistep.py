"""Trajectories of the multistep samplers against those of diffusers' schedulers: same betas, same eps, same times.

As in ``test_schedulers``, the "network" is the exact eps of a mixture of Gaussians in float64, and the schedulers get
the sigmas of our grid in float64 in place of their own float32 ones. Those of DPM-Solver cast the state to float32 in
each step: they are compared to float32's accuracy.

Most are compared where the grid ends at the first level, sigma > 0, as published Stable Diffusion samplers do. What
happens in the jump to sigma = 0 is each library's own, and there is little to agree with:

- Ours is of first order there and returns the newest estimate of x0, whatever the method. So are DPM-Solver++, and
  UniPC by lowering its last steps one by one: these are compared to the end, UniPC up to order 2, at which the step
  before the jump keeps its order. UniPC's B1, and its form in eps, multiply infinity by 0 there.
- LMS and PNDM extrapolate eps to sigma = 0 by their full order; DEIS and DPM-Solver in eps do not go there.
- DPM-Solver and DEIS lower the order of the last two steps where there are fewer than 15 (``lower_order_final``), on
  any grid: it is switched off.
- PNDM recomputes the previous time as ``t - T // n``: "leading" spacing is the one that has such steps. Half a step of
  its Runge-Kutta method is rounded to whole levels: compared where T // n is even.
- LMSDiscreteScheduler always ends at sigma = 0: its last sigma is replaced.

All begin by the rising orders (``Start.RISING``); our start that keeps the order is not known to diffusers. Its
"dpmsolver" of solver type "midpoint" at order 2 and both forms of order 3 are our ``published`` option; "heun" at order
2 is the exact integral.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import CleanEnd, Tabulated, linear_betas, scaled_linear_betas
from unfog.sampling.adams import Start
from unfog.sampling.grid import Leading, TimeGrid, Trailing
from unfog.sampling.multistep import (
    DEIS,
    PNDM,
    Bh,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Interpolation,
    UniPC,
    lms,
)
from unfog.sampling.sampler import Sampler, sample

with warnings.catch_warnings():
    # Importing diffusers warns of what its own dependencies have deprecated.
    warnings.simplefilter("ignore")
    from diffusers import (
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )

pytestmark = [
    # diffusers turns tensors into arrays, and takes their logarithm, in ways that numpy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ .*accept:DeprecationWarning"),
    # It would rather have DPM-Solver++.
    pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver:FutureWarning"),
]

LEVELS = 1000
RNG = Rng.of(22, 3)
BETAS = {"ddpm": linear_betas(), "stable diffusion": scaled_linear_betas()}

both_betas = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)
# Steps of whole levels, down to the first: 999 = 9 * 111 = 27 * 37.
steps_of_levels = pytest.mark.parametrize("steps", [9, 27])


def data(table: Tabulated) -> analytic.Analytic:
    means = torch.tensor([[-0.8, 0.3], [0.6, 0.9], [0.1, -0.5]], dtype=torch.float64)
    return analytic.mixture(Gaussian(table), means, 0.05)


def eps_of(table: Tabulated) -> Callable[[Tensor, Tensor], Tensor]:
    denoiser = data(table)

    def eps(x_t: Tensor, index: Tensor) -> Tensor:
        t = table.time_of(index.double())
        x_t = x_t.double()
        return (x_t - table.alpha(t) * denoiser(x_t, t).x0) / table.sigma(t)

    return eps


def prior(table: Tabulated) -> Tensor:
    return Gaussian(table).prior((2,), rng=RNG, dtype=torch.float64)


def ours(sampler: Sampler, grid: TimeGrid, table: Tabulated, steps: int) -> Tensor:
    x: Tensor = sample(data(table), sampler, grid.times(table, steps), prior(table), rng=RNG)
    return x


def on_our_grid(scheduler: Any, grid: TimeGrid, table: Tabulated, steps: int) -> Any:
    """Set a scheduler to the times and, in float64, the sigma / alpha of our grid, its end included."""
    scheduler.set_timesteps(steps)
    times = grid.times(table, steps)
    scheduler.timesteps = table.index(times[:-1]).round().long()
    scheduler.sigmas = table.sigma(times) / table.alpha(times)
    return scheduler


def theirs(scheduler: Any, table: Tabulated) -> Tensor:
    eps, x = eps_of(table), prior(table)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x).prev_sample
    return x


def dpm_solver(betas: Tensor, algorithm: str, order: int, solver: str) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        LEVELS,
        trained_betas=betas.tolist(),
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=solver,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )


@both_betas
@steps_of_levels
@pytest.mark.parametrize(
    ("sampler", "algorithm", "order", "solver"),
    [
        (DPMSolverPP2M(), "dpmsolver++", 2, "midpoint"),
        (DPMSolverPP3M(published=True), "dpmsolver++", 3, "midpoint"),
        (DPMSolverMultistep(1), "dpmsolver", 1, "midpoint"),
        (DPMSolverMultistep(2), "dpmsolver", 2, "heun"),
        (DPMSolverMultistep(2, published=True), "dpmsolver", 2, "midpoint"),
        (DPMSolverMultistep(3, published=True), "dpmsolver", 3, "midpoint"),
    ],
    ids=repr,
)
def test_dpm_solver_agrees(
    betas: Tensor, steps: int, sampler: Sampler, algorithm: str, order: int, solver: str
) -> None:
    table = Tabulated.from_betas(betas, CleanEnd.FIRST_LEVEL)
    scheduler = on_our_grid(dpm_solver(betas, algorithm, order, solver), Trailing(), table, steps)
    # States of size 1 are rounded to float32 in each step; those in eps divide by alpha_1 = 0.007 first.
    torch.testing.assert_close(ours(sampler, Trailing(), table, steps), theirs(scheduler, table), rtol=0, atol=1e-5)


@both_betas
@pytest.mark.parametrize("steps", [20, 40])
def test_published_dpm_solver_pp_3m_agrees_to_clean_data(betas: Tensor, steps: int) -> None:
    table = Tabulated.from_betas(betas)
    scheduler = DPMSolverMultistepScheduler(LEVELS, trained_betas=betas.tolist(), solver_order=3)
    scheduler = on_our_grid(scheduler, Trailing(), table, steps)
    found = ours(DPMSolverPP3M(published=True), Trailing(), table, steps)
    torch.testing.assert_close(found, theirs(scheduler, table), rtol=0, atol=1e-5)


def unipc(betas: Tensor, sampler: UniPC, *, to_clean_data: bool) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        LEVELS,
        trained_betas=betas.tolist(),
        solver_order=sampler.order,
        solver_type="bh1" if sampler.bh is Bh.B1 else "bh2",
        predict_x0=not sampler.of_noise,
        lower_order_final=to_clean_data,
        final_sigmas_type="zero" if to_clean_data else "sigma_min",
    )


@both_betas
@steps_of_levels
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("bh", Bh)
@pytest.mark.parametrize("of_noise", [False, True])
def test_unipc_agrees(betas: Tensor, steps: int, order: int, bh: Bh, of_noise: bool) -> None:
    table = Tabulated.from_betas(betas, CleanEnd.FIRST_LEVEL)
    sampler = UniPC(order, bh, of_noise)
    scheduler = on_our_grid(unipc(betas, sampler, to_clean_data=False), Trailing(), table, steps)
    # h_phi_k is formed by differences that lose digits as h^-k, up to 1e3 here, and 1 / alpha_1 = 150 where in eps.
    torch.testing.assert_close(ours(sampler, Trailing(), table, steps), theirs(scheduler, table), rtol=0, atol=1e-9)


@both_betas
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [10, 40])
def test_unipc_agrees_to_clean_data(betas: Tensor, steps: int, order: int) -> None:
    table, sampler = Tabulated.from_betas(betas), UniPC(order)
    scheduler = on_our_grid(unipc(betas, sampler, to_clean_data=True), Trailing(), table, steps)
    torch.testing.assert_close(ours(sampler, Trailing(), table, steps), theirs(scheduler, table), rtol=0, atol=1e-9)


@both_betas
@steps_of_levels
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_agrees(betas: Tensor, steps: int, order: int) -> None:
    # Its "logrho": a polynomial in log(sigma / alpha).
    table = Tabulated.from_betas(betas, CleanEnd.FIRST_LEVEL)
    scheduler = DEISMultistepScheduler(
        LEVELS, trained_betas=betas.tolist(), solver_order=order, lower_order_final=False
    )
    scheduler = on_our_grid(scheduler, Trailing(), table, steps)
    sampler = DEIS(order, Interpolation.LOG_SNR, Start.RISING)
    torch.testing.assert_close(ours(sampler, Trailing(), table, steps), theirs(scheduler, table), rtol=0, atol=1e-9)


@both_betas
@steps_of_levels
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_agrees(betas: Tensor, steps: int, order: int) -> None:
    table = Tabulated.from_betas(betas, CleanEnd.FIRST_LEVEL)
    scheduler = on_our_grid(LMSDiscreteScheduler(LEVELS, trained_betas=betas.tolist()), Trailing(), table, steps)
    # The state of this scheduler is x / alpha.
    eps, x = eps_of(table), prior(table) * (1 + scheduler.sigmas[0] ** 2).sqrt()
    for t in scheduler.timesteps:
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x, order=order).prev_sample
    x = x / (1 + scheduler.sigmas[-1] ** 2).sqrt()
    torch.testing.assert_close(ours(lms(order, Start.RISING), Trailing(), table, steps), x, rtol=0, atol=1e-9)


@both_betas
@pytest.mark.parametrize("runge_kutta", [False, True])
@pytest.mark.parametrize("steps", [7, 20, 50])
def test_pndm_agrees(betas: Tensor, steps: int, runge_kutta: bool) -> None:
    table = Tabulated.from_betas(betas, CleanEnd.FIRST_LEVEL)
    scheduler = PNDMScheduler(LEVELS, trained_betas=betas.tolist(), skip_prk_steps=not runge_kutta, steps_offset=1)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    found = ours(PNDM(runge_kutta), Leading(offset=1), table, steps)
    torch.testing.assert_close(found, theirs(scheduler, table), rtol=0, atol=1e-9)
