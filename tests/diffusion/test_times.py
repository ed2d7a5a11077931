import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import CleanEnd, Schedule, VarianceExploding, VariancePreserving, linear, scaled_linear
from unfog.diffusion.times import (
    Curriculum,
    Importance,
    Levels,
    LogitNormal,
    LogNormal,
    LogUniform,
    Stratified,
    Times,
    Uniform,
)

U = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


def log_ratio(t: Tensor, schedule: Schedule) -> Tensor:
    """log(sigma / alpha), the noise level that the densities over it are printed in."""
    return -0.5 * schedule.log_snr(t)


def normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


@pytest.mark.parametrize(
    ("density", "schedule", "cdf"),
    [
        (Uniform(), VariancePreserving(), lambda t, s: t),
        # Karras et al. 2022 (arXiv 2206.00364), table 1: ln sigma ~ N(-1.2, 1.2^2).
        (LogNormal(), VarianceExploding(), lambda t, s: normal_cdf((s.sigma(t).log() + 1.2) / 1.2)),
        (LogNormal(0.3, 0.5), VariancePreserving(), lambda t, s: normal_cdf((log_ratio(t, s) - 0.3) / 0.5)),
        # Song et al. 2021 (arXiv 2011.13456), appendix C: sigma(t) = sigma_min (sigma_max / sigma_min)^t, t uniform.
        (LogUniform(0.01, 50.0), VarianceExploding(), lambda t, s: (s.sigma(t) / 0.01).log() / math.log(5000)),
        # Esser et al. 2024 (arXiv 2403.03206): logit t ~ N(m, s^2).
        (LogitNormal(-0.4, 0.8), VariancePreserving(), lambda t, s: normal_cdf((t.logit() + 0.4) / 0.8)),
    ],
)
def test_quantiles_match_the_published_density(density: Times, schedule: Schedule, cdf: object) -> None:
    assert callable(cdf)
    # The Kolmogorov distance of the quantiles of an even grid of u is that of F(quantile(u)) from u.
    assert (cdf(density.quantile(U, schedule), schedule) - U).abs().max() < 1e-10


@pytest.mark.parametrize("clean", CleanEnd)
def test_each_level_has_the_same_share(clean: CleanEnd) -> None:
    table = scaled_linear(50, clean)
    index = table.index(Levels().quantile(U, table)).round().long()
    assert torch.bincount(index, minlength=50).tolist() == [400] * 50


def test_the_first_level_is_drawn_exactly_where_time_ends_at_it() -> None:
    table = scaled_linear(4, CleanEnd.FIRST_LEVEL)
    drawn = Levels().draw(Rng.of(0, 64), table)
    assert (drawn == 0).any()
    assert (table.sigma(drawn) > 0).all()


def test_what_lies_beyond_the_schedule_is_drawn_at_its_ends() -> None:
    table = scaled_linear(clean=CleanEnd.FIRST_LEVEL)
    t = LogNormal(0.0, 10.0).quantile(U, table)
    ends = log_ratio(torch.tensor([0.0, 1.0], dtype=torch.float64), table)
    below, above = normal_cdf(ends[0] / 10), 1 - normal_cdf(ends[1] / 10)
    assert (t == 0).double().mean().item() == pytest.approx(below.item(), abs=1e-4)
    assert (t == 1).double().mean().item() == pytest.approx(above.item(), abs=1e-4)


def test_small_noise_levels_are_not_cut_off() -> None:
    # On a schedule that reaches sigma = 1e5, EDM's density lies at times of 1e-9 to 1e-4.
    schedule, rng = VarianceExploding(1e5), Rng.of(0, 1 << 14)
    drawn = LogNormal().draw(rng, schedule)
    wanted = LogNormal().quantile(rng.uniform((), Purpose.TIME).double(), schedule)
    assert torch.equal(drawn, wanted)


def test_a_time_without_noise_is_never_drawn() -> None:
    class Clean(Times):
        def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
            return torch.zeros_like(u)

    drawn = Clean().draw(Rng.of(0, 3), VariancePreserving())
    assert (VariancePreserving().sigma(drawn) > 0).all()


# --- low discrepancy


def numbers(start: int, count: int, seed: int = 3) -> Tensor:
    position = torch.arange(start, start + count)
    # Samples in any order: only the position matters.
    return Stratified(Uniform()).uniforms(Rng.of(seed, position * 7919 % 1000, position=position))


@pytest.mark.parametrize("start", [0, 1, 12345, 50_000_000])
@pytest.mark.parametrize("count", [4, 10, 64, 1000])
def test_any_window_of_positions_covers_the_unit_interval_evenly(start: int, count: int) -> None:
    u = numbers(start, count).sort().values
    gaps = torch.cat([u.diff(), (1 - u[-1] + u[0])[None]])
    # n points of the golden rotation leave no gap above 1.9 / n (three-distance theorem); independent ones, ln n / n.
    assert gaps.max().item() < 1.9 / count
    rank = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    # Its discrepancy is below (3 + log n) / n.
    assert (u - rank).abs().max().item() < (3 + math.log(count)) / count


def test_the_sequence_goes_on_over_batches_and_epochs() -> None:
    whole = numbers(100, 64)
    assert torch.equal(torch.cat([numbers(100, 10), numbers(110, 54)]), whole)
    later = Stratified(Uniform()).uniforms(Rng.of(3, 64, 9, position=torch.arange(100, 164)))
    assert torch.equal(later, whole)


def test_each_draw_is_uniform_over_seeds() -> None:
    u = torch.stack([numbers(17, 1, seed)[0] for seed in range(1000)]).sort().values
    rank = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    # sqrt(n) D exceeds 1.95 for one sample in a thousand; the seeds are fixed.
    assert (u - rank).abs().max().item() < 1.95 / math.sqrt(1000)


def test_low_discrepancy_numbers_lie_in_the_open_interval() -> None:
    u = numbers(2**26 - 500, 1000)
    assert u.dtype is torch.float64
    assert ((u > 0) & (u < 1)).all()


def test_a_mean_over_stratified_times_is_more_exact() -> None:
    schedule = linear()
    truth = schedule.alpha(U).mean()
    errors = {}
    for name, density in (("independent", Uniform()), ("stratified", Stratified(Uniform()))):
        means = [schedule.alpha(density.draw(Rng.of(seed, 128), schedule)).mean() for seed in range(10)]
        errors[name] = max((mean - truth).abs().item() for mean in means)
    # 128 independent times err by 0.03, stratified ones by about 1 / 128 of the range.
    assert errors["stratified"] < 0.3 * errors["independent"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogNormal(std=0.0),
        lambda: LogitNormal(std=-1.0),
        lambda: LogUniform(0.0, 1.0),
        lambda: LogUniform(2.0, 1.0),
        lambda: LogNormal(std=math.nan),
    ],
)
def test_settings_out_of_range_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"^expected (std above 0|0 < sigma_min < sigma_max)"):
        make()


# --- densities that change


EASY, HARD = LogitNormal(2.0, 0.5), LogitNormal(-2.0, 0.5)


def drawn_at(times: Times, position: int, count: int = 20000) -> Tensor:
    """Draws of many examples that all come at one position of the run."""
    rng = Rng.of(1, count, position=torch.full((count,), position))
    return times.draw(rng, VariancePreserving())


@pytest.mark.parametrize(("position", "share"), [(0, 0.0), (250, 0.25), (500, 0.5), (1000, 1.0), (5000, 1.0)])
def test_a_curriculum_is_the_mixture_that_belongs_to_the_position(position: int, share: float) -> None:
    t = drawn_at(Curriculum(EASY, HARD, 1000), position)
    grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    cdf = share * normal_cdf((grid.logit() + 2) / 0.5) + (1 - share) * normal_cdf((grid.logit() - 2) / 0.5)
    found = (t[:, None] <= grid).double().mean(0)
    # sqrt(n) D exceeds 1.95 for one fair sample in a thousand; the seed is fixed.
    assert (found - cdf).abs().max() < 1.95 / math.sqrt(len(t))


def test_a_curriculum_takes_its_numbers_from_the_second_density() -> None:
    times = Curriculum(Uniform(), Stratified(Uniform()), 10)
    rng = Rng.of(3, 64, position=torch.arange(100, 164))
    assert torch.equal(times.draw(rng, VariancePreserving()), Stratified(Uniform()).draw(rng, VariancePreserving()))


@pytest.mark.parametrize("wrap", [Stratified, lambda density: Importance(density, levels=4)])
def test_a_wrapped_curriculum_moves_on_too(wrap: object) -> None:
    assert callable(wrap)
    times = wrap(Curriculum(EASY, HARD, 1000))
    assert drawn_at(times, 0).median() > 0.5 > drawn_at(times, 1000).median()


def test_measurements_are_made_over_the_density_of_the_end() -> None:
    curriculum = Curriculum(EASY, Stratified(HARD), 1000)
    assert curriculum.at_end() == Stratified(HARD)
    assert Stratified(curriculum).at_end() == Stratified(Stratified(HARD))
    assert Importance(curriculum).at_end() == Stratified(HARD)
    assert Uniform().at_end() == Uniform()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Curriculum(EASY, HARD, 0), "examples of at least 1"),
        (lambda: Curriculum(Curriculum(EASY, HARD, 5), HARD, 5), "plain densities, not Curriculum"),
        (lambda: Curriculum(EASY, Importance(HARD), 5), "plain densities, not Importance"),
        (lambda: Importance(Importance(EASY)), "a density without importance sampling of its own"),
        (lambda: Stratified(Importance(EASY)), "a density without importance sampling: give Importance one"),
        (lambda: Importance(EASY, levels=1), "levels of at least 2"),
        (lambda: Importance(EASY, history=0), "history of at least 1"),
        (lambda: Importance(EASY, uniform=0.0), r"uniform in \(0, 1\]"),
    ],
)
def test_densities_that_change_refuse_what_they_cannot_be(make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"expected {expected}"):
        make()
