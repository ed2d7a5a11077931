"""The curves of log-SNR against their formulas; what every schedule must do is in the contracts."""

import math

import pytest
import torch

from unfog.diffusion.curves import LogLinear, Shifted, Sigmoid, Spline, scales_of, spline_part
from unfog.diffusion.parameterization import Eps, V
from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    linear,
    scaled_linear,
)

T = torch.linspace(0, 1, 201, dtype=torch.float64)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-3.0, 3.0, 0.3)])
def test_alpha_bar_of_the_sigmoid_schedule_is_the_published_one(start: float, end: float, tau: float) -> None:
    low, high = (torch.sigmoid(torch.tensor(v / tau, dtype=torch.float64)) for v in (start, end))
    wanted = (high - torch.sigmoid((start + T * (end - start)) / tau)) / (high - low)
    # The published form loses digits in differences: 1e-16 over the smallest slope of these, 1e-4.
    torch.testing.assert_close(Sigmoid(start, end, tau).alpha(T) ** 2, wanted, rtol=0, atol=1e-12)


def test_the_sigmoid_schedule_keeps_its_digits_at_both_ends() -> None:
    t = torch.tensor([1e-13, 1e-9], dtype=torch.float64)
    schedule = Sigmoid()
    # The first term of the series: sigma^2 = c t, alpha^2 = c (1 - t), c = 3 cosh(1.5) / (cosh(1.5) sinh(3)).
    slope = 3.0 / math.sinh(3.0)
    torch.testing.assert_close(schedule.sigma(t) ** 2, slope * t, rtol=1e-8, atol=0)
    back = 1.0 - t
    torch.testing.assert_close(schedule.alpha(back) ** 2, slope * (1.0 - back), rtol=1e-8, atol=0)


def test_a_logarithmic_schedule_is_a_straight_line_of_log_snr() -> None:
    torch.testing.assert_close(LogLinear(9.0, -4.0).log_snr(T), 9.0 - 13.0 * T, rtol=0, atol=1e-13)


def test_scales_of_a_log_snr_have_it_and_preserve_the_variance() -> None:
    log_snr = torch.linspace(-38, 38, 77, dtype=torch.float64)
    alpha, sigma = scales_of(log_snr)
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), log_snr, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-15, atol=0)


def test_a_spline_has_equal_parts_of_log_snr_at_its_knots() -> None:
    spline = Spline(10.0, -6.0, (0.0, 0.1, 0.15, 0.7, 1.0))
    knots = torch.tensor(spline.times, dtype=torch.float64)
    torch.testing.assert_close(spline.log_snr(knots), torch.linspace(10, -6, 5, dtype=torch.float64))
    middle = 0.5 * (knots[1:] + knots[:-1])
    torch.testing.assert_close(spline.log_snr(middle), torch.tensor([8.0, 4.0, 0.0, -4.0], dtype=torch.float64))


def test_a_spline_of_one_part_is_the_straight_line() -> None:
    spline, line = Spline(9.0, -4.0, (0.0, 1.0)), LogLinear(9.0, -4.0)
    torch.testing.assert_close(spline.alpha(T), line.alpha(T), rtol=1e-15, atol=0)


def test_the_part_of_a_spline_reaches_both_ends_exactly() -> None:
    knots = torch.tensor([0.0, 0.3, 0.31, 1.0], dtype=torch.float64)
    ends = spline_part(knots, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [0.0, 1.0]


def test_a_network_knows_a_noise_level_by_the_same_number_wherever_the_ends_of_a_spline_are() -> None:
    one, other = Spline(13.3, -5.0, (0.0, 0.2, 1.0)), Spline(11.0, -7.0, (0.0, 0.6, 1.0))
    log_snr = torch.linspace(10, -4, 15, dtype=torch.float64)
    told = [schedule.network_time(schedule.time(log_snr)) for schedule in (one, other)]
    torch.testing.assert_close(told[0], told[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(told[0], 1000 * (13.3 - log_snr) / 18.3, rtol=1e-12, atol=0)


SHIFTED: list[Schedule] = [
    Cosine(),
    VariancePreserving(),
    RectifiedFlow(),
    VarianceExploding(),
    linear(),
    scaled_linear(clean=CleanEnd.FIRST_LEVEL),
    LogLinear(),
]


@pytest.mark.parametrize("schedule", SHIFTED, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_a_shift_moves_the_log_snr_of_any_schedule_by_a_constant(schedule: Schedule, scale: float) -> None:
    t = T[1:-1]
    moved = Shifted(schedule, scale).log_snr(t) - schedule.log_snr(t)
    torch.testing.assert_close(moved, torch.full_like(t, 2 * math.log(scale)), rtol=0, atol=1e-12)


def test_the_shift_for_a_size_is_the_published_one() -> None:
    moved = Shifted.for_size(Cosine(), 256).log_snr(T[1:-1]) - Cosine().log_snr(T[1:-1])
    # Hoogeboom et al. 2023 (arXiv 2301.11093): + 2 log(64 / d).
    torch.testing.assert_close(moved, torch.full_like(moved, 2 * math.log(64 / 256)), rtol=0, atol=1e-12)


def test_a_shifted_schedule_preserves_the_variance_whatever_is_within() -> None:
    for schedule in SHIFTED:
        alpha, sigma = Shifted(schedule, 0.5).scales(T)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T), rtol=1e-14, atol=0)


def test_shifts_within_shifts_add_up() -> None:
    twice = Shifted(Shifted(VariancePreserving(), 0.5), 0.5)
    torch.testing.assert_close(twice.alpha(T), Shifted(VariancePreserving(), 0.25).alpha(T), rtol=1e-13, atol=0)


@pytest.mark.parametrize("schedule", [Cosine(), linear(), RectifiedFlow(3.0)])
def test_a_shift_does_not_change_what_a_network_is_told_of_a_noise_level(schedule: Schedule) -> None:
    shifted = Shifted(schedule, 0.5)
    t = T[20:-40]
    same_noise = schedule.time(shifted.log_snr(t))
    # Indices up to 999 from times good to 1e-16 times their slope.
    torch.testing.assert_close(shifted.network_time(t), schedule.network_time(same_noise), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("schedule", [Sigmoid(), Shifted(Cosine(), 0.5), Shifted(Sigmoid(), 2.0)])
def test_eps_is_refused_where_no_signal_is_left_and_v_is_not(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="has alpha_1 = 0, where the noise"):
        Eps().check(schedule)
    V().check(schedule)


def test_eps_is_taken_where_a_shift_leaves_some_signal() -> None:
    Eps().check(Shifted(linear(), 0.25))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Sigmoid(3.0, -3.0), "start < end"),
        (lambda: Sigmoid(tau=0.0), "a positive tau"),
        (lambda: Sigmoid(tau=0.01), "raise tau"),
        (lambda: LogLinear(-5.0, 5.0), "log_snr_min < log_snr_max"),
        (lambda: LogLinear(100.0, 0.0), "log_snr_max <= 40"),
        (lambda: Spline(5.0, -5.0, (0.0, 0.6, 0.6, 1.0)), "rise strictly from 0 to 1"),
        (lambda: Spline(5.0, -5.0, (0.1, 1.0)), "rise strictly from 0 to 1"),
        (lambda: Spline(5.0, -5.0, (0.0, 1.0), (1.0, 2.0)), "log_snr_min < log_snr_max"),
        (lambda: Shifted(Cosine(), 0.0), "a positive scale"),
        (lambda: Shifted(Cosine(), math.inf), "a positive scale"),
        (lambda: Shifted.for_size(Cosine(), 0), "at least 1 pixel"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, told: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"^expected .*{told}"):
        make()
