"""The schedules against their formulas in 60-digit arithmetic, and the published tables."""

import math
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    Schedule,
    SubVariancePreserving,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    cosine,
    cosine_betas,
    linear,
    linear_betas,
    scaled_linear,
    scaled_linear_betas,
)

getcontext().prec = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
TIMES = (1e-12, 1e-8, 1e-4, 0.03, 0.3, 0.5, 0.77, 0.95, 0.9995, 1 - 1e-8)


def sine(x: Decimal) -> Decimal:
    total = term = x
    k = 1
    while abs(term) > Decimal(10) ** -55:
        term *= -x * x / ((k + 1) * (k + 2))
        total, k = total + term, k + 2
    return total


def exact(schedule: Schedule, time: float) -> tuple[Decimal, Decimal]:
    """Return alpha and sigma at a float64 time, taken as the number it is."""
    t = Decimal(time)
    match schedule:
        case VariancePreserving(beta_min, beta_max) | SubVariancePreserving(beta_min, beta_max):
            integral = Decimal(beta_min) * t + (Decimal(beta_max) - Decimal(beta_min)) * t * t / 2
            variance = 1 - (-integral).exp()
            vp = isinstance(schedule, VariancePreserving)
            return (-integral / 2).exp(), variance.sqrt() if vp else variance
        case Cosine():
            return sine(PI / 2 * (1 - t)), sine(PI / 2 * t)
        case RectifiedFlow(shift):
            r = Fraction(shift) * Fraction(time) / (1 + (Fraction(shift) - 1) * Fraction(time))
            return as_decimal(1 - r), as_decimal(r)
        case VarianceExploding(sigma_max):
            return Decimal(1), Decimal(sigma_max) * t
        case Tabulated():
            ratio = exact_ratio(schedule, t)
            norm = (1 + ratio * ratio).sqrt()
            return 1 / norm, ratio / norm
    raise AssertionError(f"no formula for {type(schedule).__name__}: write it here")


def as_decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def exact_ratio(table: Tabulated, t: Decimal) -> Decimal:
    """Return sigma / alpha between the levels as the docstring of Tabulated says."""
    ratios = [((1 - Decimal(a)) / Decimal(a)).sqrt() if a else None for a in table.alphas_cumprod]
    first = table.clean is CleanEnd.FIRST_LEVEL
    index = t * (table.levels - 1) if first else t * table.levels - 1
    if index < 0:
        return (index + 1) * (ratios[0] or 0)
    j = min(int(index), table.levels - 2)
    low, high, part = ratios[j], ratios[j + 1], index - j
    assert low is not None
    if high is None:
        return low / (1 - part)
    return (low.ln() + part * (high.ln() - low.ln())).exp()


def zero_terminal(levels: int) -> tuple[float, ...]:
    return tuple((1 - (i + 1) / levels) ** 2 * 0.99 for i in range(levels))


SCHEDULES = {
    "vp": VariancePreserving(),
    "steep vp": VariancePreserving(0.5, 100.0),
    "sub-vp": SubVariancePreserving(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "shifted flow": RectifiedFlow(3.0),
    "ve": VarianceExploding(),
    "linear": linear(),
    "table from its first level": scaled_linear(clean=CleanEnd.FIRST_LEVEL),
    "zero terminal": Tabulated(zero_terminal(40)),
    "two levels": Tabulated((0.9, 0.1)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_both_scales_are_right_in_relative_terms(name: str) -> None:
    schedule = SCHEDULES[name]
    for t in TIMES:
        time = torch.tensor(t, dtype=torch.float64)
        for found, wanted in zip((schedule.alpha(time), schedule.sigma(time)), exact(schedule, t), strict=True):
            # Rounding of an index up to T moves log(sigma / alpha) by its slope per level; beside a zero terminal SNR
            # that slope is 1 / (1 - part). Elsewhere a handful of roundings of exponents up to 25.
            slope = 1 / (1 - t) if isinstance(schedule, Tabulated) and schedule.alphas_cumprod[-1] == 0 else 1.0
            relative = abs(Decimal(found.item()) / wanted - 1)
            assert relative < Decimal(64 * 2.3e-16 * slope), (name, t)


def test_the_sub_vp_noise_is_the_vp_variance() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    # 1 - exp(-B) is the variance of one and the deviation of the other.
    torch.testing.assert_close(SubVariancePreserving().sigma(t), VariancePreserving().sigma(t) ** 2)


@pytest.mark.parametrize("name", ["vp", "steep vp", "cosine", "linear", "zero terminal", "two levels"])
def test_variance_is_preserved(name: str) -> None:
    schedule = SCHEDULES[name]
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize("shift", [0.3, 1.0, 4.0])
def test_a_shift_of_the_flow_moves_the_log_snr_by_a_constant(shift: float) -> None:
    t = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    moved = RectifiedFlow(shift).log_snr(t) - RectifiedFlow().log_snr(t)
    torch.testing.assert_close(moved, torch.full_like(t, -2 * math.log(shift)), rtol=0, atol=1e-13)


def test_a_shift_of_the_flow_is_that_of_stable_diffusion_3() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    # Esser et al. 2024 (arXiv 2403.03206), eq. 23, for four times the pixels.
    expected = math.sqrt(4) * t / (1 + (math.sqrt(4) - 1) * t)
    torch.testing.assert_close(RectifiedFlow(2.0).sigma(t), expected, rtol=1e-15, atol=0)


def test_a_network_of_a_shifted_flow_is_told_the_noise_level() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = RectifiedFlow(3.0)
    same_noise = RectifiedFlow().time(shifted.log_snr(t))
    torch.testing.assert_close(
        shifted.network_time(t), RectifiedFlow().network_time(same_noise), rtol=1e-13, atol=1e-12
    )


def test_the_continuous_vp_is_the_limit_of_the_linear_betas() -> None:
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    # beta_i = beta(t_i) / T: the sum of T terms is the integral but for O(1 / T).
    gaps = [(linear(steps).log_snr(t) - VariancePreserving().log_snr(t)).abs().max() for steps in (1000, 10000)]
    assert gaps[1] < 0.15 * gaps[0]


# --- tables


def tables() -> list[Tabulated]:
    bars = [linear(), scaled_linear(), Tabulated(zero_terminal(40)), Tabulated((0.9, 0.1)), Tabulated((0.7, 0.0))]
    return [Tabulated(table.alphas_cumprod, clean) for table in bars for clean in CleanEnd]


@pytest.mark.parametrize("table", tables(), ids=lambda table: f"{table.levels} {table.clean.value}")
def test_whole_levels_have_the_scales_of_the_table(table: Tabulated) -> None:
    levels = torch.arange(table.levels, dtype=torch.float64)
    bar = torch.tensor(table.alphas_cumprod, dtype=torch.float64)
    t = table.time_of(levels)
    # The square of alpha is the level's but for roundings of its logarithm, at most 20.
    torch.testing.assert_close(table.alpha(t) ** 2, bar, rtol=1e-12, atol=1e-20)
    torch.testing.assert_close(table.sigma(t) ** 2, 1 - bar, rtol=1e-11, atol=0)


@pytest.mark.parametrize("table", tables(), ids=lambda table: f"{table.levels} {table.clean.value}")
def test_times_and_indices_are_inverse(table: Tabulated) -> None:
    index = torch.linspace(0, table.levels - 1, 77, dtype=torch.float64)
    torch.testing.assert_close(table.index(table.time_of(index)), index, rtol=1e-13, atol=1e-12)
    assert table.time_of(index[-1]) == 1
    assert table.index(torch.ones(())) == table.levels - 1


def test_level_i_lies_at_i_plus_1_of_t_and_the_network_is_told_i() -> None:
    table = linear()
    t = torch.tensor([1 / 1000, 500 / 1000, 1.0], dtype=torch.float64)
    torch.testing.assert_close(table.network_time(t), torch.tensor([0.0, 499.0, 999.0], dtype=torch.float64))
    between = torch.tensor([1.5 / 1000], dtype=torch.float64)
    torch.testing.assert_close(table.network_time(between), torch.tensor([0.5], dtype=torch.float64))


def test_the_clean_end_is_clean_or_the_first_level() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    exact_end, first = scaled_linear(), scaled_linear(clean=CleanEnd.FIRST_LEVEL)
    assert exact_end.sigma(zero) == 0
    assert exact_end.alpha(zero) == 1
    assert exact_end.log_snr(zero) == math.inf
    assert first.sigma(zero).item() == pytest.approx(math.sqrt(0.00085), rel=1e-12)
    assert first.network_time(zero) == 0


def test_the_network_of_a_table_is_never_told_a_negative_index() -> None:
    assert (linear().network_time(torch.linspace(0, 2e-3, 21)) >= 0).all()


def test_below_the_first_level_sigma_over_alpha_grows_linearly() -> None:
    table = linear()
    t = torch.tensor([1e-9, 2e-6, 5e-4, 1e-3], dtype=torch.float64)
    ratio = table.sigma(t) / table.alpha(t)
    torch.testing.assert_close(ratio / t, (ratio[-1] / t[-1]).expand(4), rtol=1e-12, atol=0)


def test_above_the_last_but_one_level_alpha_over_sigma_falls_linearly_to_zero_terminal_snr() -> None:
    table = Tabulated((0.9, 0.5, 0.0))
    index = torch.tensor([1.0, 1.25, 1.5, 2.0], dtype=torch.float64)
    t = table.time_of(index)
    # At abar = 0.5 the ratio is 1.
    torch.testing.assert_close(table.alpha(t) / table.sigma(t), 2 - index, rtol=1e-14, atol=1e-15)
    assert table.alpha(t[-1]) == 0
    assert table.sigma(t[-1]) == 1


def test_a_table_computes_in_float32_as_far_as_float32_goes() -> None:
    table = Tabulated((0.9, 1e-38))
    t = torch.linspace(0, 1, 11)
    assert table.alpha(t).isfinite().all()
    assert table.sigma(t).isfinite().all()
    assert table.log_snr(t[1:]).isfinite().all()


@pytest.mark.parametrize(
    "alphas_cumprod", [(0.5,), (0.5, 0.5), (0.4, 0.5), (1.0, 0.5), (0.5, -0.1), (0.5, math.nan), ()]
)
def test_levels_that_do_not_fall_within_the_unit_interval_are_refused(alphas_cumprod: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected (at least two levels|alphas_cumprod that fall strictly)"):
        Tabulated(alphas_cumprod)


def test_betas_become_a_table() -> None:
    betas = torch.tensor([0.1, 0.2, 0.5])
    expected = torch.tensor([0.9, 0.72, 0.36], dtype=torch.float64)
    # The betas are given in float32.
    torch.testing.assert_close(
        torch.tensor(Tabulated.from_betas(betas).alphas_cumprod, dtype=torch.float64), expected, rtol=1e-7, atol=0
    )
    assert Tabulated.from_betas([0.1, 0.2], CleanEnd.FIRST_LEVEL).clean is CleanEnd.FIRST_LEVEL


# --- published betas


def test_linear_betas_are_those_of_ddpm() -> None:
    betas = linear_betas()
    assert len(betas) == 1000
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-14)
    assert betas[-1].item() == pytest.approx(0.02, rel=1e-14)
    assert (betas.diff() - betas.diff()[0]).abs().max() < 1e-16
    # Ho, Jain, Abbeel 2020, section 4: the signal left at T is small, L_T about 1e-5 bits a dimension.
    assert linear().alphas_cumprod[-1] == pytest.approx(4.036e-5, rel=1e-3)


@pytest.mark.parametrize("steps", [100, 4000])
def test_linear_betas_of_another_length_are_rescaled(steps: int) -> None:
    betas = linear_betas(steps)
    torch.testing.assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64) * (1000 / steps))
    # The integral of beta, and so the end of the schedule, stays where it was to the order of the steps.
    assert math.log(linear(steps).alphas_cumprod[-1]) == pytest.approx(math.log(linear().alphas_cumprod[-1]), rel=0.15)


def test_so_few_linear_betas_that_one_reaches_1_are_refused() -> None:
    assert linear_betas(21)[-1] < 1
    with pytest.raises(ValueError, match="more than 20 steps, not 20"):
        linear_betas(20)


def test_scaled_linear_betas_have_linear_roots() -> None:
    roots = scaled_linear_betas().sqrt()
    assert (roots.diff() - roots.diff()[0]).abs().max() < 1e-15
    torch.testing.assert_close(roots[[0, -1]] ** 2, torch.tensor([0.00085, 0.012], dtype=torch.float64))


def test_the_cosine_table_follows_its_formula_until_the_clip() -> None:
    # Nichol, Dhariwal 2021 (arXiv 2102.09672), eq. 17.
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    f = torch.cos((torch.cat([torch.zeros(1, dtype=torch.float64), t]) + 0.008) / 1.008 * math.pi / 2) ** 2
    bar = torch.tensor(cosine().alphas_cumprod, dtype=torch.float64)
    betas = cosine_betas()
    clipped = betas == 0.999
    assert clipped.tolist() == [False] * 999 + [True]
    # Near t = 1 the cosine of a number near pi / 2 keeps eps / alpha, 1e-13, in relative terms.
    torch.testing.assert_close(bar[~clipped], (f[1:] / f[0])[~clipped], rtol=1e-11, atol=0)
    assert bar[-1].item() == pytest.approx(2.4e-9, rel=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VariancePreserving(0.0, 20.0),
        lambda: VariancePreserving(20.0, 0.1),
        lambda: SubVariancePreserving(3.0, 1.0),
        lambda: RectifiedFlow(0.0),
        lambda: RectifiedFlow(math.inf),
        lambda: RectifiedFlow(math.nan),
        lambda: VarianceExploding(-1.0),
        lambda: VarianceExploding(math.inf),
        lambda: scaled_linear_betas(1),
        lambda: scaled_linear_betas(10, 0.2, 0.1),
        lambda: cosine_betas(10, s=-0.1),
        lambda: cosine_betas(10, max_beta=1.0),
    ],
)
def test_settings_out_of_range_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"^expected "):
        make()


# The first forward differentiation of a process makes torch 2.13 import a module that warns.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_rates_work_under_inference_mode_and_for_frames() -> None:
    t: Tensor = torch.rand(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        rates = Cosine().rates(t)
    torch.testing.assert_close(rates.sigma, math.pi / 2 * torch.cos(math.pi / 2 * t))
