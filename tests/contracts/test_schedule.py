import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion.schedule import Schedule, Tabulated

EPS = torch.finfo(torch.float64).eps


def interior(schedule: Schedule) -> Tensor:
    """Times within (0, 1) off the kinks of a table, which lie at its levels."""
    if isinstance(schedule, Tabulated):
        index = torch.linspace(0, schedule.levels - 2, min(schedule.levels - 1, 40), dtype=torch.float64).floor()
        times = schedule.time_of(index + 0.4)
        below = 0.4 * schedule.time_of(torch.zeros(1, dtype=torch.float64))
        return torch.cat([below[below > 0], times])
    return torch.linspace(0.005, 0.995, 40, dtype=torch.float64)


def test_both_scales_at_once_are_those_of_each(schedule: Schedule) -> None:
    for t in (
        torch.tensor(0.4),
        torch.linspace(0, 1, 2003, dtype=torch.float64),
        torch.tensor([[0.0, 0.3], [0.7, 1.0]]),
    ):
        alpha, sigma = schedule.scales(t)
        assert torch.equal(alpha, schedule.alpha(t))
        assert torch.equal(sigma, schedule.sigma(t))


def test_the_log_snr_falls_strictly(schedule: Schedule) -> None:
    log_snr = schedule.log_snr(torch.linspace(0, 1, 4001, dtype=torch.float64))
    assert (log_snr.diff() < 0).all()


def test_a_thousand_levels_stay_apart_in_float32(schedule: Schedule) -> None:
    log_snr = schedule.log_snr(torch.linspace(0, 1, 1001, dtype=torch.float32))
    assert (log_snr.diff() < 0).all()


def test_alpha_and_sigma_are_scales(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert ((alpha >= 0) & (alpha <= 1) & (sigma >= 0)).all()
    assert sigma[-1] > 0


def test_time_inverts_the_log_snr(schedule: Schedule) -> None:
    small = torch.logspace(-12, -2, 21, dtype=torch.float64)
    t = torch.cat([small, interior(schedule), 1 - small])
    log_snr, rate = schedule.log_snr(t), schedule.rates(t).log_snr
    # alpha and sigma are good to a few roundings, and so is the log-SNR besides its own; the inverse divides by its
    # rate, about 2 / t near 0, so the tolerance is relative there. Times near 1 are spaced by eps themselves.
    tolerance = 64 * EPS * ((1 + log_snr.abs()) / rate.abs() + t * (t > 0.01))
    assert ((schedule.time(log_snr) - t).abs() <= tolerance).all()


def test_the_log_snr_inverts_time(schedule: Schedule) -> None:
    ends = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).clamp(-40, 40)
    log_snr = torch.linspace(*ends.tolist(), 101, dtype=torch.float64)[1:-1]
    t = schedule.time(log_snr)
    # A time near 1 is good to eps, which the rate turns into log-SNR.
    tolerance = 64 * EPS * (1 + log_snr.abs() + (t * schedule.rates(t).log_snr).abs())
    assert ((schedule.log_snr(t) - log_snr).abs() <= tolerance).all()


@pytest.mark.parametrize(("log_snr", "end"), [(-math.inf, 1.0), (-2000.0, 1.0), (math.inf, 0.0)])
def test_log_snrs_out_of_range_give_the_nearer_end(schedule: Schedule, log_snr: float, end: float) -> None:
    assert schedule.time(torch.tensor(log_snr, dtype=torch.float64)).item() == end


def test_the_inverse_does_not_hide_a_nan(schedule: Schedule) -> None:
    assert schedule.time(torch.tensor(math.nan, dtype=torch.float64)).isnan()


def test_rates_equal_central_differences(schedule: Schedule) -> None:
    t = interior(schedule)
    h = 1e-5 * torch.minimum(t, 1 - t)
    for function, rate in zip((schedule.alpha, schedule.sigma, schedule.log_snr), schedule.rates(t), strict=True):
        difference = (function(t + h) - function(t - h)) / (2 * h)
        # Truncation is (h/t)^2 = 1e-10 of the rate for functions like powers of t or of 1 - t; rounding is eps / h.
        tolerance = 1e-8 * rate.abs() + 4 * EPS * (1 + function(t).abs()) / h
        assert ((difference - rate).abs() <= tolerance).all()


def test_rates_equal_reverse_differentiation(schedule: Schedule) -> None:
    near_ends = torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64)
    t = torch.cat([interior(schedule), near_ends]).requires_grad_()
    for function, rate in zip((schedule.alpha, schedule.sigma, schedule.log_snr), schedule.rates(t), strict=True):
        value = function(t)
        gradient = torch.zeros_like(t) if not value.requires_grad else torch.autograd.grad(value.sum(), t)[0]
        # Both differentiate the same operations exactly; only the order of products differs.
        torch.testing.assert_close(gradient, rate.detach(), rtol=1e-12, atol=1e-300)


def test_rates_at_the_ends_are_the_limits_of_those_nearby(schedule: Schedule) -> None:
    ends, near = (torch.tensor(t, dtype=torch.float64) for t in ((0.0, 1.0), (1e-12, 1 - 1e-12)))
    for rate, limit in zip(schedule.rates(ends), schedule.rates(near), strict=True):
        # Where the rate is finite it moves by some 1e-12 of its scale; where it is not (the log-SNR at an exact end,
        # sigma of the VP schedule at 0) it has grown to at least 1e5 nearby.
        close = (rate - limit).abs() <= 1e-6 * (1 + limit.abs())
        assert (close | (rate.isinf() & (limit.abs() > 1e5) & (rate.sign() == limit.sign()))).all()


def test_float32_agrees_with_float64_in_relative_terms(schedule: Schedule) -> None:
    t = torch.logspace(-12, 0, 200, dtype=torch.float32)
    for function in (schedule.alpha, schedule.sigma):
        exact, single = function(t.double()), function(t).double()
        # sigma is a few roundings from exact; a table's log-ratio is rounded to 4e-7 and its index to 6e-5 of a level,
        # over which no schedule here moves by more than that fraction, save next to a zero terminal SNR.
        inside = exact > 1e-3 if function == schedule.alpha else torch.ones_like(exact, dtype=torch.bool)
        torch.testing.assert_close(single[inside], exact[inside], rtol=2e-4, atol=0)


def test_the_dtype_of_the_times_is_kept(schedule: Schedule) -> None:
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([0.0, 0.25, 1.0], dtype=dtype)
        results = (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t), schedule.time(schedule.log_snr(t)))
        assert {value.dtype for value in results} == {dtype}


def test_any_shape_of_times_is_taken_elementwise(schedule: Schedule) -> None:
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.network_time):
        assert function(t[0]).shape == ()
        # Vector and scalar code paths of one function may differ in the last bit.
        torch.testing.assert_close(function(t.reshape(2, 3)), function(t).reshape(2, 3), rtol=4 * EPS, atol=0)


def test_the_network_time_is_finite_and_rises(schedule: Schedule) -> None:
    seen = schedule.network_time(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert seen.isfinite().all()
    assert (seen.diff() >= 0).all()
    assert seen[-1] > seen[0]


def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    assert hash(schedule) == hash(schedule)
    with pytest.raises(AttributeError):
        schedule.anything = 1  # type: ignore[attr-defined]
