import math

import pytest
import torch

from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving, linear
from unfog.sampling.gaussian import DDIM, DDPM
from unfog.sampling.grid import Trailing
from unfog.sampling.table import Grid, Move, Node, Row, gaussian_moments, log_kept, transition

SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(2.0), VarianceExploding()]


def pair(schedule: Schedule, t: float = 0.7, s: float = 0.4) -> tuple[Node, Node]:
    first, second = Grid.of(schedule, torch.tensor([t, s], dtype=torch.float64))
    return first, second


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("t", "s"), [(0.7, 0.4), (1.0, 0.9), (0.3, 0.29999), (0.2, 0.0)])
def test_eta_1_is_the_posterior_of_the_process(schedule: Schedule, t: float, s: float) -> None:
    posterior = Gaussian(schedule).posterior(torch.tensor(s, dtype=torch.float64), torch.tensor(t, dtype=torch.float64))
    move = transition(*pair(schedule, t, s), eta=1.0)
    # Close times leave eleven digits in the difference of log-SNRs, on both sides.
    assert move.x == pytest.approx(posterior.x_t_scale.item(), rel=1e-10, abs=1e-300)
    assert move.x0[0] == pytest.approx(posterior.x0_scale.item(), rel=1e-10)
    assert move.noise == pytest.approx(posterior.std.item(), rel=1e-10, abs=1e-300)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_transition_is_ddims_step(eta: float) -> None:
    # Song, Meng, Ermon 2021 (arXiv 2010.02502), eqs. 12 and 16, in their alphas: products of ours squared.
    t, s = pair(VariancePreserving())
    bar_t, bar_s = t.alpha**2, s.alpha**2
    sigma = eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
    x_t, x0 = 0.8, -0.3
    eps = (x_t - math.sqrt(bar_t) * x0) / math.sqrt(1 - bar_t)
    expected = math.sqrt(bar_s) * x0 + math.sqrt(1 - bar_s - sigma**2) * eps
    move = transition(t, s, eta=eta)
    assert move.noise == pytest.approx(sigma, rel=1e-12, abs=1e-15)
    assert move.x * x_t + move.x0[0] * x0 == pytest.approx(expected, rel=1e-12)


def test_eta_0_is_euler_on_a_straight_flow() -> None:
    t, s = pair(RectifiedFlow())
    x_t, x0 = 0.8, -0.3
    velocity = (x_t - x0) / t.sigma
    move = transition(t, s)
    assert move.x * x_t + move.x0[0] * x0 == pytest.approx(x_t + (s.sigma - t.sigma) * velocity, rel=1e-13)
    assert move.noise == 0


def test_eta_0_is_euler_in_sigma() -> None:
    # Karras et al. 2022 (arXiv 2206.00364), algorithm 1, without its correction.
    t, s = pair(VarianceExploding())
    x_t, x0 = 30.0, -0.3
    move = transition(t, s)
    expected = x_t + (s.sigma - t.sigma) * (x_t - x0) / t.sigma
    assert move.x * x_t + move.x0[0] * x0 == pytest.approx(expected, rel=1e-13)


def test_eta_1_is_the_first_order_sde_solver() -> None:
    # Lu et al. 2022 (arXiv 2211.01095): SDE-DPM-Solver++(1).
    t, s = pair(VariancePreserving())
    h = s.half_log_snr - t.half_log_snr
    move = transition(t, s, eta=1.0)
    assert move.x == pytest.approx(s.sigma / t.sigma * math.exp(-h), rel=1e-13)
    assert move.x0[0] == pytest.approx(s.alpha * (1 - math.exp(-2 * h)), rel=1e-13)
    assert move.noise == pytest.approx(s.sigma * math.sqrt(1 - math.exp(-2 * h)), rel=1e-13)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_ends_of_time_are_exact(eta: float) -> None:
    noise, middle, clean = Grid.of(Cosine(), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert transition(noise, clean, eta=eta) == Move(0.0, (1.0,), 0.0)
    assert transition(middle, clean, eta=eta) == Move(0.0, (1.0,), 0.0)
    start = transition(noise, middle, eta=eta)
    # From pure noise h is infinite: c = eta sigma_s.
    assert start.noise == pytest.approx(eta * middle.sigma, rel=1e-15, abs=1e-300)
    assert start.x == pytest.approx(middle.sigma * math.sqrt(1 - eta**2), rel=1e-15, abs=1e-300)
    assert start.x0 == (middle.alpha,)


def test_close_times_keep_their_digits() -> None:
    # sigma = t: a = s / t and b = 1 - s / t, where s - t is exact.
    t, s = pair(VarianceExploding(1.0), 0.5, 0.5 - 2.0**-30)
    move = transition(t, s)
    # b is a difference of logarithms of size 0.7, good to 2^-53 of that, over 2^-29.
    assert move.x0[0] == pytest.approx(2.0**-29, rel=2.0**-22)


def test_weights_share_the_weight_of_x0() -> None:
    t, s = pair(Cosine())
    plain, weighted = transition(t, s), transition(t, s, weights=(1.5, -0.5), commits=False)
    assert weighted.x == plain.x
    assert weighted.x0 == (1.5 * plain.x0[0], -0.5 * plain.x0[0])
    assert not weighted.commits


def test_what_is_kept_falls_with_eta() -> None:
    t, s = pair(Cosine())
    kept = [log_kept(t, s, eta) for eta in (0.0, 0.25, 0.5, 1.0 - 1e-12, 1.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[3] == pytest.approx(kept[4], rel=1e-9)


@pytest.mark.parametrize("times", [[1.0], [], [0.5, 0.5], [0.2, 0.4], [1.1, 0.0], [0.4, -0.1], [math.nan, 0.0]])
def test_times_that_do_not_fall_within_the_unit_interval_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^expected (a grid of at least 2 times|times that fall strictly)"):
        Grid.of(Cosine(), torch.tensor(times))


def test_nodes_know_their_log_snr() -> None:
    noise, middle, clean = Grid.of(Cosine(), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert (noise.half_log_snr, clean.half_log_snr) == (-math.inf, math.inf)
    assert middle.half_log_snr == pytest.approx(0.0, abs=1e-15)


def test_one_step_returns_the_mean_of_the_data_without_variance() -> None:
    # From pure noise the exact denoiser knows the mean alone.
    rows = DDIM().table(Cosine(), Trailing().times(Cosine(), 1))
    assert gaussian_moments(rows, Cosine(), 0.7, 0.4) == (0.7, 0.0)


def test_moments_of_a_hand_made_table() -> None:
    # x_1 = eps_0 (alpha = 0); evaluate: x0 = mean; x_s = 0.5 x + 2 x0 + 0.25 eps.
    rows = [Row(1.0, (Move(0.5, (2.0,), 0.25),), 0.0)]
    mean, variance = gaussian_moments(rows, Cosine(), 0.7, 0.4)
    assert mean == pytest.approx(1.4, rel=1e-15)
    assert variance == pytest.approx(0.5**2 + 0.25**2, rel=1e-15)


def test_moves_that_do_not_commit_leave_the_state() -> None:
    rows = [Row(1.0, (Move(9.0, (0.0,), 0.0, commits=False),), 0.5), Row(0.5, (Move(1.0, (0.0,)),), 0.0)]
    assert gaussian_moments(rows, Cosine(), 0.7, 0.4) == (0.0, 1.0)


def test_the_steps_of_ddpm_reach_the_moments_of_the_data() -> None:
    schedule, errors = linear(), []
    for steps in (250, 1000):
        rows = DDPM().table(schedule, Trailing().times(schedule, steps))
        mean, variance = gaussian_moments(rows, schedule, 0.5, 0.25)
        # The prior has mean 0 instead of alpha_1 / 2 = 3e-3, of which the steps leave a thousandth.
        assert mean == pytest.approx(0.5, abs=1e-4)
        errors.append(0.25 - variance)
    # First order: a fourth of an error of 6 %.
    assert errors[0] < 0.016
    assert 0.2 < errors[1] / errors[0] < 0.3


def test_moments_start_where_they_are_told() -> None:
    # One step that keeps 0.5 of the state: from N(2, 9) with data that are 0 the state's own moments are all there is.
    rows = [Row(1.0, (Move(0.5, (0.0,)),), 0.0)]
    assert gaussian_moments(rows, Cosine(), 0.0, 0.0, start=(2.0, 9.0)) == (1.0, 2.25)


def test_moments_start_from_the_prior_unless_told() -> None:
    rows = DDPM().table(VariancePreserving(), Trailing().times(VariancePreserving(), 5))
    sigma = VariancePreserving().sigma(torch.ones((), dtype=torch.float64)).item()
    told = gaussian_moments(rows, VariancePreserving(), 0.7, 0.4, start=(0.0, sigma**2))
    assert gaussian_moments(rows, VariancePreserving(), 0.7, 0.4) == told
