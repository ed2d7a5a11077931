import json
from dataclasses import asdict, replace

import pytest
import torch

from unfog.diffusion.analytic import gaussian
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, VariancePreserving
from unfog.evaluation.features import FeatureConfig
from unfog.evaluation.scores import Comparison, Missing
from unfog.evaluation.sweep import (
    Accurate,
    Amount,
    Judge,
    Point,
    accurate_solution,
    distances,
    draw,
    injects_noise,
    measure_setting,
    recommended,
    undominated,
)
from unfog.metrics.interval import Score
from unfog.pipeline import Pipeline
from unfog.sampling.adaptive import RK45
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import LogSNRUniform, Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleRequest, SampleSettings

NONE = Missing("not measured")


def settings(sampler, steps, guidance=1.0):
    return SampleSettings(sampler, Trailing(), steps, guidance)


def exact_pipeline(mean=0.2, variance=0.09):
    """Data N(mean, variance) in each of 16 places, with their exact denoiser."""
    process = Gaussian(VariancePreserving())
    denoiser = gaussian(process, torch.full((1, 4, 4), mean), variance)
    return Pipeline(denoiser, Unconditional(), Identity(), (1, 4, 4), settings(DDIM(), 3))


def point(evaluations, value=None, high=None, **changed):
    frechet = NONE if value is None else Score(value, value - 0.1, value + 0.1 if high is None else high, 10, "")
    quality = replace(Comparison.without(NONE), frechet=frechet)
    made = Point("ddim", "trailing", evaluations, 1.0, evaluations, 0.01, NONE, quality)
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("sampler", "steps", "noisy"),
    [(DDIM(), 4, False), (Heun(), 3, False), (DDIM(0.3), 4, True), (DDPM(), 4, True), (DDPM(), 1, False)],
)
def test_noise_is_noticed_where_it_is_injected(sampler, steps, noisy):
    assert injects_noise(settings(sampler, steps), Cosine()) == noisy


def test_the_distance_of_a_solver_falls_with_its_order_on_data_of_known_solution():
    pipeline, amount = exact_pipeline(), Amount(samples=0, noises=8)
    accurate = accurate_solution(pipeline, settings(Heun(), 200), amount)
    # The flow maps N(0, 1) linearly on N(0.2, 0.09), from as much signal as VP leaves at t = 1.
    start = Gaussian(VariancePreserving()).prior((1, 4, 4), rng=Rng.of(0, 8))
    assert torch.allclose(accurate.x, 0.2 + 0.3 * start, atol=3e-3)
    found = [distances(draw(pipeline, settings(DDIM(), n), amount).x, accurate.x).mean() for n in (10, 20, 40)]
    assert 1.6 < found[0] / found[1] < 2.4
    assert 1.6 < found[1] / found[2] < 2.4
    assert accurate.error.value < 0.1 * found[2]


def test_the_error_of_the_accurate_solution_is_what_half_the_steps_miss():
    pipeline, amount = exact_pipeline(), Amount(samples=0, noises=5)
    accurate = accurate_solution(pipeline, settings(DDIM(), 20), amount)
    coarse = draw(pipeline, settings(DDIM(), 10), amount).x
    assert accurate.error.value == pytest.approx(float(distances(coarse, accurate.x).mean()))


@pytest.mark.parametrize(
    ("accurate", "words"), [(settings(DDPM(), 4), "a deterministic sampler"), (settings(DDIM(), 5), "an even number")]
)
def test_what_is_no_accurate_solution_is_refused(accurate, words):
    with pytest.raises(ValueError, match=words):
        accurate_solution(exact_pipeline(), accurate, Amount(samples=0, noises=4))


def test_samples_are_those_of_a_request_whatever_the_batch(toy_pipeline):
    pipeline, _ = toy_pipeline()
    drawn = draw(pipeline, settings(DDIM(), 2, 2.0), Amount(samples=7, noises=4, seed=5, batch_size=3))
    whole = pipeline.sample(SampleRequest(7, [k % 2 for k in range(7)], 5, 0, settings(DDIM(), 2, 2.0))).x
    assert drawn.x.shape == (4, 1, 8, 8)
    assert drawn.pixels.shape == (7, 1, 8, 8)
    assert torch.allclose(drawn.x, whole[:4])


@pytest.mark.parametrize("wanted", [settings(DDIM(), 4), settings(Heun(), 3, 2.0), settings(DPMSolverPP2M(), 5, 0.0)])
def test_evaluations_are_counted_as_they_are_made(toy_pipeline, wanted):
    pipeline, _ = toy_pipeline()
    assert draw(pipeline, wanted, Amount(samples=5, noises=0, batch_size=2)).evaluations == wanted.evaluations


def test_an_adaptive_sampler_costs_what_it_took_and_not_the_most_it_may():
    wanted = SampleSettings(RK45(), LogSNRUniform(), 4)
    drawn = draw(exact_pipeline(), wanted, Amount(samples=3, noises=2))
    assert 6 < drawn.evaluations < wanted.evaluations


def test_a_model_of_attributes_is_asked_for_those_of_examples_in_turn(told_pipeline, shapes):
    pipeline, test = told_pipeline[0], shapes[1]
    amount, wanted = Amount(samples=0, noises=12, seed=5), settings(DDIM(), 2, 2.0)
    told = [tuple(row) for row in test.gather(torch.arange(12) % 10)["attributes"].tolist()]
    whole = pipeline.sample(SampleRequest(12, attributes=told, seed=5, settings=wanted)).x
    assert torch.equal(draw(pipeline, wanted, amount, test).x, whole)
    assert torch.equal(accurate_solution(pipeline, wanted, amount, test).x, whole)
    point = measure_setting(pipeline, wanted, ("ddim", "trailing"), amount, Accurate(whole, NONE, 0.0), NONE, test)
    assert point.distance.value == 0
    with pytest.raises(ValueError, match="examples whose attributes are asked for"):
        draw(pipeline, wanted, amount)


def test_more_noises_than_samples_are_drawn_once(toy_pipeline):
    pipeline, _ = toy_pipeline()
    drawn = draw(pipeline, settings(DDIM(), 1), Amount(samples=2, noises=5, batch_size=2))
    assert (len(drawn.x), len(drawn.pixels)) == (5, 2)


def test_a_setting_has_distance_and_quality_and_a_noisy_one_no_distance(toy_pipeline, toy_dataset, effort, tmp_path):
    pipeline, _ = toy_pipeline()
    amount = Amount(samples=20, noises=4, batch_size=10, resamples=20)
    accurate = accurate_solution(pipeline, settings(DPMSolverPP2M(), 20), amount)
    judge = Judge.of(toy_dataset(60, 0), toy_dataset(30, 1), tmp_path, amount, effort.features)
    assert isinstance(judge, Judge)
    assert isinstance(judge.floor.precision, Score)
    found = measure_setting(pipeline, settings(DDIM(), 2, 2.0), ("ddim", "trailing"), amount, accurate, judge)
    assert (found.evaluations, found.guidance) == (4, 2.0)
    assert isinstance(found.distance, Score)
    assert isinstance(found.quality.precision, Score)
    assert found.quality.precision.count == 20
    assert len(found.draws) == (20 if isinstance(found.quality.frechet, Score) else 0)
    noisy = measure_setting(pipeline, settings(DDPM(), 2), ("ddpm", "trailing"), amount, accurate, judge)
    assert isinstance(noisy.distance, Missing)
    assert "injects noise" in noisy.distance.reason


def test_a_point_survives_json():
    there = point(4, 1.5, distance=Score(0.1, 0.05, 0.15, 8, "8 noises"), draws=(1.4, 1.6))
    assert Point.from_dict(json.loads(json.dumps(there.to_dict()))) == there


def test_no_judge_can_be_made_without_samples_or_of_too_few_examples(toy_dataset, tmp_path):
    assert isinstance(Judge.of(toy_dataset(60, 0), toy_dataset(30, 1), tmp_path, Amount(samples=0)), Missing)
    few = Judge.of(toy_dataset(2, 0), toy_dataset(2, 1), tmp_path, Amount(samples=4), FeatureConfig())
    assert isinstance(few, Missing)


def scored(evaluations, value, spread, seed=1):
    """A setting of which the distances of resampled samples vary together with those of others, and a little apart."""
    both, own = (torch.randn(200, generator=torch.Generator().manual_seed(s)) for s in (0, seed))
    return point(evaluations, value, draws=tuple((value + 5.0 * both + spread * own).tolist()))


def test_the_cheapest_setting_that_is_as_good_as_the_best_but_for_chance_is_recommended():
    best = scored(50, 2.0, 0.1)
    points = [scored(4, 9.0, 0.1, 2), scored(8, 2.1, 0.1, 3), scored(10, 2.02, 0.1, 4), scored(8, 2.05, 0.1, 5), best]
    # What varies for all settings alike does not hide what tells them apart.
    assert recommended(points) is points[3]
    assert recommended([scored(8, 2.6, 0.1, 3), best]) is best
    assert recommended([best]) is best


def test_without_a_frechet_distance_nothing_is_recommended():
    chosen = recommended([point(4), point(8)])
    assert isinstance(chosen, Missing)
    assert "not measured" in chosen.reason


def test_settings_that_others_beat_at_less_cost_are_dominated():
    points = [point(8, 2.5), point(4, 3.0), point(8, 2.0), point(16, 2.2), point(32, 1.0), point(2)]
    assert undominated(points) == [points[1], points[2], points[4]]


def test_without_frechet_distances_those_to_the_accurate_solution_tell_what_is_dominated():
    far, near, nearer = (point(n, distance=Score(d, d, d, 4, "")) for n, d in ((4, 0.3), (8, 0.1), (8, 0.05)))
    assert undominated([far, near, nearer, point(2)]) == [far, nearer]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"samples": -1}, "samples of at least 0"),
        ({"noises": 1}, "noises of 0, or of at least 2"),
        ({"samples": 0, "noises": 0}, "nothing to measure"),
        ({"batch_size": 0}, "a batch_size of at least 1"),
    ],
)
def test_amounts_that_mean_nothing_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Amount(**wrong)


def test_distances_are_root_mean_squares_of_each_sample():
    x = torch.zeros(2, 1, 2, 2)
    x[1] = 0.5
    assert distances(x, torch.zeros_like(x)).tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="samples shaped"):
        distances(x, x[:1])


def test_an_accurate_solution_tells_its_error_as_a_score():
    found = accurate_solution(exact_pipeline(), settings(DDIM(), 2), Amount(samples=0, noises=2))
    assert isinstance(found, Accurate)
    assert asdict(found.error)["count"] == 2
