"""Trajectories of the samplers against those of diffusers' schedulers: same betas, same eps, same noise.

The "network" is the exact eps of a mixture of Gaussians in float64. diffusers keeps its tables in float32, where
1 - alpha_bar of the first levels has three digits; they are replaced by float64 ones, so that what is compared is the
algorithms. Two schedulers cast the state to float32 in each step: they are compared to float32's accuracy.

Where diffusers' own grid of times is not what it says, there is nothing to agree with:

- DDIMScheduler recomputes the previous time as ``t - T // n``. With "trailing" and "linspace" spacing that is the next
  time of its grid only where n divides T (or never); "leading" has steps of exactly T // n and is compared at any n.
- DDPMScheduler with the forward variance ("fixed_large") adds noise whenever the evaluated level is above 0, so with
  "trailing" spacing the last step leaves noise in the sample; "leading" and "linspace" end at level 0.
- DDPM, Euler and Heun round "trailing" times to whole levels: the same grid as ours only where n divides T.
- DPMSolverMultistepScheduler's "leading" and "linspace" are grids of n + 1 steps without the last: it is given the
  times of our grid by its own argument instead.
"""

import os
import warnings
from collections.abc import Callable, Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import CleanEnd, Tabulated, linear_betas, scaled_linear_betas
from unfog.sampling.gaussian import DDIM, DDPM, Heun, Variance, euler
from unfog.sampling.grid import Leading, Linspace, TimeGrid, Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.noise import noises
from unfog.sampling.sampler import Sampler, TableSampler, sample

with warnings.catch_warnings():
    # Importing diffusers warns of what its own dependencies have deprecated.
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
    )

# diffusers turns tensors into arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

LEVELS = 1000
RNG = Rng.of(21, 3)
BETAS = {"ddpm": linear_betas(), "stable diffusion": scaled_linear_betas()}

both_betas = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)


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


def draws(sampler: TableSampler, grid: TimeGrid, table: Tabulated, steps: int) -> Iterator[Tensor]:
    """Yield the noise that our sampler injects, then zeros for steps that want none."""
    x = prior(table)
    yield from noises(sampler.table(table, grid.times(table, steps)), x, RNG)
    while True:
        yield torch.zeros_like(x)


def in_float64(scheduler: DDPMScheduler, betas: Tensor) -> DDPMScheduler:
    """Replace the float32 tables of a scheduler."""
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.one = torch.ones((), dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        first = not scheduler.config.set_alpha_to_one
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0] if first else scheduler.one
    return scheduler


@both_betas
@pytest.mark.parametrize(("variance", "name"), [(Variance.POSTERIOR, "fixed_small"), (Variance.BETA, "fixed_large")])
@pytest.mark.parametrize(
    ("spacing", "grid", "steps"),
    [("leading", Leading(), 7), ("leading", Leading(), 30), ("leading", Leading(), 101), ("linspace", Linspace(), 28)],
)
def test_ddpm_agrees(
    monkeypatch: pytest.MonkeyPatch,
    betas: Tensor,
    variance: Variance,
    name: str,
    spacing: str,
    grid: TimeGrid,
    steps: int,
) -> None:
    scheduler = in_float64(
        DDPMScheduler(
            LEVELS, trained_betas=betas.tolist(), variance_type=name, clip_sample=False, timestep_spacing=spacing
        ),
        betas,
    )
    scheduler.set_timesteps(steps)
    table = Tabulated.from_betas(betas)
    noise = draws(DDPM(variance), grid, table, steps)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **options: next(noise))
    eps, x = eps_of(table), prior(table)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x).prev_sample
    # The same numbers by other formulas: 1 - alpha_bar keeps twelve digits, and x0 from eps divides by sqrt(alpha_bar).
    torch.testing.assert_close(ours(DDPM(variance), grid, table, steps), x, rtol=0, atol=1e-9)


@both_betas
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [7, 30, 50])
def test_ddim_agrees(betas: Tensor, eta: float, steps: int) -> None:
    scheduler = in_float64(DDIMScheduler(LEVELS, trained_betas=betas.tolist(), clip_sample=False), betas)
    scheduler.set_timesteps(steps)
    table = Tabulated.from_betas(betas)
    eps, x, noise = eps_of(table), prior(table), draws(DDIM(eta), Leading(), table, steps)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x, eta=eta, variance_noise=next(noise)).prev_sample
    torch.testing.assert_close(ours(DDIM(eta), Leading(), table, steps), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [7, 20, 50])
def test_ddim_agrees_in_the_settings_of_stable_diffusion(steps: int) -> None:
    # An offset of one level, and the end at the first level instead of clean data.
    betas = BETAS["stable diffusion"]
    scheduler = in_float64(
        DDIMScheduler(LEVELS, trained_betas=betas.tolist(), clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        betas,
    )
    scheduler.set_timesteps(steps)
    table = Tabulated.from_betas(betas, CleanEnd.FIRST_LEVEL)
    eps, x = eps_of(table), prior(table)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x).prev_sample
    torch.testing.assert_close(ours(DDIM(), Leading(offset=1), table, steps), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize("steps", [2, 7, 28, 50])
def test_linspace_visits_the_timesteps_of_linspace(count: int, steps: int) -> None:
    betas = linear_betas(count)
    table = Tabulated.from_betas(betas)
    found = table.index(Linspace(count).times(table, steps)[:-1])
    exact = EulerDiscreteScheduler(count, trained_betas=betas.tolist(), timestep_spacing="linspace")
    rounded = DDPMScheduler(count, trained_betas=betas.tolist(), timestep_spacing="linspace")
    exact.set_timesteps(steps)
    rounded.set_timesteps(steps)
    # Euler keeps fractional timesteps in float32; DDPM rounds them, where it can be off by a half from ours.
    torch.testing.assert_close(found, exact.timesteps.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found, rounded.timesteps.double(), rtol=0, atol=0.5 + 1e-9)


GRIDS = [("leading", Leading(), 7), ("trailing", Trailing(), 20), ("linspace", Linspace(), 28)]


@both_betas
@pytest.mark.parametrize(("spacing", "grid", "steps"), GRIDS)
def test_euler_agrees(betas: Tensor, spacing: str, grid: TimeGrid, steps: int) -> None:
    scheduler = in_float64(
        EulerDiscreteScheduler(LEVELS, trained_betas=betas.tolist(), timestep_spacing=spacing), betas
    )
    scheduler.set_timesteps(steps)
    table = Tabulated.from_betas(betas)
    # The state of this scheduler is x / alpha.
    eps, x = eps_of(table), prior(table) * (1 + scheduler.sigmas[0].double() ** 2).sqrt()
    for t in scheduler.timesteps:
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    # States of up to 160, the linear betas' sigma / alpha, are rounded to float32 in each step: 160 * 6e-8 = 1e-5.
    torch.testing.assert_close(ours(euler(), grid, table, steps), x, rtol=0, atol=1e-5)


@both_betas
@pytest.mark.parametrize(("spacing", "grid", "steps"), GRIDS)
def test_heun_agrees(betas: Tensor, spacing: str, grid: TimeGrid, steps: int) -> None:
    scheduler = in_float64(HeunDiscreteScheduler(LEVELS, trained_betas=betas.tolist(), timestep_spacing=spacing), betas)
    scheduler.set_timesteps(steps)
    index = scheduler.timesteps.long()
    ratio = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    # float64 sigmas in its own order: each level but the first twice, then 0.
    scheduler.sigmas = torch.cat([ratio[index], torch.zeros(1, dtype=torch.float64)])
    table = Tabulated.from_betas(betas)
    eps, x = eps_of(table), prior(table) * (1 + scheduler.sigmas[0] ** 2).sqrt()
    for t in scheduler.timesteps:
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    # Few long steps put up to 5e2 of weight on a difference of estimates, which multiplies roundings of 1e-13.
    torch.testing.assert_close(ours(Heun(), grid, table, steps), x, rtol=0, atol=1e-9)


@both_betas
@pytest.mark.parametrize(("eta", "name"), [(0.0, "dpmsolver++"), (1.0, "sde-dpmsolver++")])
@pytest.mark.parametrize(("grid", "steps"), [(Trailing(), 10), (Trailing(), 40), (Leading(), 7), (Linspace(), 28)])
def test_dpm_solver_pp_2m_agrees(betas: Tensor, eta: float, name: str, grid: TimeGrid, steps: int) -> None:
    table = Tabulated.from_betas(betas)
    scheduler = in_float64(
        DPMSolverMultistepScheduler(
            LEVELS, trained_betas=betas.tolist(), solver_order=2, algorithm_type=name, solver_type="midpoint"
        ),
        betas,
    )
    scheduler.set_timesteps(timesteps=table.index(grid.times(table, steps)[:-1]).round().long().tolist())
    eps, x, noise = eps_of(table), prior(table), draws(DPMSolverPP2M(eta), grid, table, steps)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x, variance_noise=next(noise)).prev_sample
    # States and sigmas of size 1 and log-SNR differences are rounded to float32 in up to 40 steps.
    torch.testing.assert_close(ours(DPMSolverPP2M(eta), grid, table, steps), x, rtol=0, atol=1e-5)
