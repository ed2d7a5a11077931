"""The tables of the methods against their published algorithms, written out step by step."""

import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    linear,
    linear_betas,
    scaled_linear,
)
from unfog.sampling.gaussian import DDIM, DDPM, Heun, Variable, Variance, euler
from unfog.sampling.grid import Karras, Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.noise import noises
from unfog.sampling.sampler import TableSampler, sample

RNG = Rng.of(8, 5)


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.0]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.1, torch.tensor([0.4, 0.6], dtype=torch.float64))


def prior(schedule: Schedule) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=RNG, dtype=torch.float64)


def run(sampler: TableSampler, schedule: Schedule, times: Tensor) -> Tensor:
    return sample(data(schedule), sampler, times, prior(schedule), rng=RNG)


def scales(schedule: Schedule, times: Tensor) -> list[tuple[float, float]]:
    return list(zip(schedule.alpha(times).tolist(), schedule.sigma(times).tolist(), strict=True))


@pytest.mark.parametrize("variance", Variance)
def test_ddpm_is_algorithm_2_of_its_paper(variance: Variance) -> None:
    # Ho, Jain, Abbeel 2020 (arXiv 2006.11239), algorithm 2 with eq. 11, on all levels of a short table.
    schedule = linear(40)
    betas = linear_betas(40)
    bar = torch.cumprod(1 - betas, 0)
    x = prior(schedule)
    noise = noises(DDPM(variance).table(schedule, Trailing().times(schedule, 40)), x, RNG)
    for i in range(39, -1, -1):
        x0 = data(schedule)(x, schedule.time_of(torch.tensor(i, dtype=torch.float64))).x0
        eps = (x - bar[i].sqrt() * x0) / (1 - bar[i]).sqrt()
        x = (x - betas[i] / (1 - bar[i]).sqrt() * eps) / (1 - betas[i]).sqrt()
        if i > 0:
            reverse = betas[i] if variance is Variance.BETA else (1 - bar[i - 1]) / (1 - bar[i]) * betas[i]
            x = x + reverse.sqrt() * next(noise)
    # Forty steps, each rounded; eps from x0 costs a division by sigma >= 0.05.
    torch.testing.assert_close(run(DDPM(variance), schedule, Trailing().times(schedule, 40)), x, rtol=0, atol=1e-12)


def test_ddpm_with_the_posterior_is_ddim_with_eta_1() -> None:
    times = Trailing().times(Cosine(), 9)
    assert DDPM().table(Cosine(), times) == DDIM(1.0).table(Cosine(), times)


def test_the_forward_variance_is_beta_between_neighbouring_levels_and_nothing_at_the_end() -> None:
    rows = DDPM(Variance.BETA).table(linear(), Trailing().times(linear(), 1000))
    noise = torch.tensor([row.moves[0].noise for row in rows], dtype=torch.float64)
    # beta keeps twelve digits of the cumulative products that it is formed from.
    torch.testing.assert_close(noise[:-1] ** 2, linear_betas().flip(0)[:-1], rtol=1e-11, atol=0)
    assert noise[-1] == 0


def test_euler_is_ddim() -> None:
    assert euler() == DDIM(0.0)


def test_heun_is_algorithm_1_of_edm() -> None:
    # Karras et al. 2022 (arXiv 2206.00364), algorithm 1 with sigma(t) = t and s(t) = 1.
    schedule = VarianceExploding()
    times = Karras(sigma_min=0.01).times(schedule, 12)
    x, denoise = prior(schedule), data(schedule)
    for i in range(12):
        t, s = (80 * times[i]).item(), (80 * times[i + 1]).item()
        d = (x - denoise(x, times[i]).x0) / t
        following = x + (s - t) * d
        if s > 0:
            d_following = (following - denoise(following, times[i + 1]).x0) / s
            following = x + (s - t) * (0.5 * d + 0.5 * d_following)
        x = following
    torch.testing.assert_close(run(Heun(), schedule, times), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), RectifiedFlow(3.0)], ids=repr)
def test_heun_in_flow_time_is_the_trapezoidal_rule_on_the_velocity(schedule: RectifiedFlow) -> None:
    times = Trailing().times(schedule, 10)
    tau = schedule.sigma(times).tolist()
    x, denoise = prior(schedule), data(schedule)
    for i in range(10):
        v = (x - denoise(x, times[i]).x0) / tau[i]
        following = x + (tau[i + 1] - tau[i]) * v
        if i < 9:
            v_following = (following - denoise(following, times[i + 1]).x0) / tau[i + 1]
            following = x + (tau[i + 1] - tau[i]) * 0.5 * (v + v_following)
        x = following
    torch.testing.assert_close(run(Heun(Variable.FLOW), schedule, times), x, rtol=0, atol=1e-13)


def test_heun_in_sigma_rescales_other_schedules() -> None:
    schedule = VariancePreserving()
    times = Karras(sigma_min=0.02).times(schedule, 11)
    x, denoise = prior(schedule), data(schedule)
    nodes = scales(schedule, times)
    for i in range(11):
        (a_t, s_t), (a_s, s_s) = nodes[i : i + 2]
        y, tau_t, tau_s = x / a_t, s_t / a_t, s_s / a_s
        d = (y - denoise(x, times[i]).x0) / tau_t
        following = y + (tau_s - tau_t) * d
        if i < 10:
            d_following = (following - denoise(a_s * following, times[i + 1]).x0) / tau_s
            following = y + (tau_s - tau_t) * 0.5 * (d + d_following)
        x = a_s * following
    # States are divided by alpha_1 = 0.007 here and not in the table.
    torch.testing.assert_close(run(Heun(), schedule, times), x, rtol=0, atol=1e-12)


def test_heun_leaves_pure_noise_in_flow_time() -> None:
    times = Trailing().times(Cosine(), 4)
    sigma, flow = Heun(Variable.SIGMA).table(Cosine(), times), Heun(Variable.FLOW).table(Cosine(), times)
    assert sigma[:2] == flow[:2]
    assert sigma[2:] != flow[2:]
    assert all(math.isfinite(weight) for row in sigma for move in row.moves for weight in move.x0)


@pytest.mark.parametrize("clean", CleanEnd)
def test_heun_evaluates_twice_a_step_and_once_on_the_last(clean: CleanEnd) -> None:
    schedule = scaled_linear(clean=clean)
    rows = Heun().table(schedule, Trailing().times(schedule, 5))
    assert [row.moves[0].commits for row in rows] == [False, True] * 4 + [True]
    assert len(rows) == Heun().evaluations(5) == 9


def memory(sampler: TableSampler, schedule: Schedule, times: Tensor, variance: float) -> float:
    """Return what is left of the start in the end for Gaussian data of mean 0: E[x_end | x_start] / x_start."""
    x, estimates = 1.0, list[float]()
    for row, (alpha, sigma) in zip(sampler.table(schedule, times), scales(schedule, times[:-1]), strict=True):
        (move,) = row.moves
        estimates.insert(0, alpha * variance / (alpha**2 * variance + sigma**2) * x)
        x = move.x * x + sum(w * estimate for w, estimate in zip(move.x0, estimates, strict=False))
    return x


@pytest.mark.parametrize(
    "sampler",
    [*(DDIM(eta) for eta in (0.0, 0.5, 1.0)), *(DPMSolverPP2M(eta) for eta in (0.0, 0.3, 0.5, 0.8, 1.0))],
    ids=repr,
)
@pytest.mark.parametrize("schedule", [VariancePreserving(), RectifiedFlow(3.0), VarianceExploding()], ids=repr)
def test_what_is_left_of_the_start_converges_to_the_sde_at_the_order(
    sampler: DDIM | DPMSolverPP2M, schedule: Schedule
) -> None:
    # With v the variance of the data, the SDE with eta times its noise has E[x_s | x_t] / x_t = alpha_s / alpha_t
    # ((v + sigma_s^2 / alpha_s^2) / (v + sigma_t^2 / alpha_t^2))^((1 + eta^2) / 2): the ODE's at 0, the posterior's
    # at 1. Times as in the contracts on order, away from sigma = 0.
    variance, errors = 0.3, []
    for steps in (128, 256):
        times = schedule.time(torch.linspace(-5.0, 4.0, steps + 1, dtype=torch.float64))
        (a_t, s_t), (a_s, s_s) = scales(schedule, times[[0, -1]])
        ratio = (variance + (s_s / a_s) ** 2) / (variance + (s_t / a_t) ** 2)
        truth = a_s / a_t * ratio ** ((1 + sampler.eta**2) / 2)
        errors.append(abs(memory(sampler, schedule, times, variance) / truth - 1))
    # At eta = 1 some are exact for Gaussian data: 256 steps of roundings of log-SNRs are left.
    assert errors[1] <= max(errors[0] / 2 ** (sampler.order - 0.2), 1e-12)


def test_a_table_that_ends_at_its_first_level_leaves_that_noise() -> None:
    schedule = scaled_linear(clean=CleanEnd.FIRST_LEVEL)
    point = torch.tensor([0.4, -0.3], dtype=torch.float64)
    x = prior(schedule)
    found = sample(analytic.point_mass(Gaussian(schedule), point), DDIM(), Trailing().times(schedule, 20), x, rng=RNG)
    (alpha_0, sigma_0), (alpha_1, sigma_1) = scales(schedule, torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = alpha_0 * point + sigma_0 / sigma_1 * (x - alpha_1 * point)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_zero_terminal_snr_starts_from_the_mean() -> None:
    schedule = Tabulated((0.99, 0.5, 0.0))
    rows = DDIM().table(schedule, Trailing().times(schedule, 3))
    assert rows[0].moves[0].x0[0] == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert rows[0].moves[0].x == pytest.approx(math.sqrt(0.5), rel=1e-14)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_beyond_the_unit_interval_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=rf"expected eta in \[0, 1\], not {eta}"):
        DDIM(eta)
