import json
from dataclasses import asdict, replace

import pytest
import torch

from unfog.asking import asked_like
from unfog.data.dataset import to_uint8
from unfog.evaluation.features import FeatureConfig, feature_extractor
from unfog.evaluation.guidance_curve import (
    CurveJudge,
    GuidanceCurve,
    GuidancePoint,
    deviation,
    draw_curve,
    measure_scale,
)
from unfog.evaluation.measure import describe
from unfog.evaluation.scores import Missing
from unfog.metrics.interval import Score
from unfog.pipeline import Pipeline
from unfog.recipe.data import open_data
from unfog.recipe.schema import DataConfig
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.request import SampleSettings


@pytest.fixture(scope="module")
def judge(toy_dataset, effort, tmp_path_factory):
    train, test = toy_dataset(120, 0), toy_dataset(60, 1)
    extractor = feature_extractor(train, tmp_path_factory.mktemp("cache"), effort.features)
    return CurveJudge.of(extractor, train, test, 40, seed=0, resamples=20)


@pytest.fixture(scope="module")
def curve(judge, toy_dataset, toy_pipeline):
    pipeline, _ = toy_pipeline()
    request = asked_like(
        pipeline.conditioner, toy_dataset(120, 0), 40, settings=pipeline.settings, seed=0, batch_size=16
    )
    points = [
        measure_scale(pipeline, judge, request, pipeline.settings.with_guidance(scale)) for scale in (1.0, 2.0, 4.0)
    ]
    name = judge.extractor.card.name
    settings = describe(pipeline.settings)
    return GuidanceCurve(name, 40, 0, settings, tuple(points), judge.floor, judge.real_accuracy)


def test_samples_are_asked_for_the_classes_of_the_data(toy_dataset, toy_pipeline):
    pipeline, _ = toy_pipeline()
    data = toy_dataset(30, 0)
    request = asked_like(pipeline.conditioner, data, 45, settings=pipeline.settings, seed=3, batch_size=8)
    assert len(request.labels) == 45
    # Thirty rows once, fifteen of them again.
    assert sorted(request.labels[:30]) == sorted(data.gather(torch.arange(30))["label"].tolist())
    assert request.labels[30:] == request.labels[:15]
    plain, _ = toy_pipeline(classes=0)
    assert asked_like(plain.conditioner, data, 4, settings=plain.settings, seed=3, batch_size=8).labels is None


def test_deviation_is_the_spread_around_the_means_of_groups():
    groups = torch.arange(4000) % 2
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 2 + 10 * groups[:, None]
    # The root of three variances of 4; a relative standard error of 1 / sqrt(2 * 3 * 4000).
    assert deviation(x, groups) == pytest.approx(12**0.5, rel=0.03)
    assert deviation(x, torch.zeros_like(groups)) > 8


def test_every_scale_begins_from_the_same_noises(judge, toy_dataset, toy_pipeline):
    pipeline, _ = toy_pipeline()
    request = asked_like(
        pipeline.conditioner, toy_dataset(120, 0), 12, settings=pipeline.settings, seed=0, batch_size=5
    )
    first, again = (measure_scale(pipeline, judge, request, pipeline.settings) for _ in range(2))
    assert first == again
    whole = replace(request, batch_size=12)
    assert measure_scale(pipeline, judge, whole, pipeline.settings) == first


def test_real_examples_are_as_spread_and_as_well_named_as_real_ones(judge, toy_dataset, toy_pipeline):
    pipeline, _ = toy_pipeline()
    values = toy_dataset(60, 1).gather(torch.arange(60))
    pixels = ((values["x0"] + 1) * 127.5).round().to(torch.uint8)
    point = judge.judged(pixels, values["label"], pipeline.settings)
    assert isinstance(point.spread, Score)
    # The same 60 examples as those judged by, of which it uses 40.
    assert point.spread.value == pytest.approx(1, abs=0.15)
    assert isinstance(point.accuracy, Score)
    assert point.accuracy.value == pytest.approx(judge.real_accuracy.value, abs=0.15)


def test_what_cannot_be_judged_is_missing(toy_dataset, effort, tmp_path, toy_pipeline):
    pipeline: Pipeline = toy_pipeline(classes=0)[0]
    train, test = toy_dataset(80, 0, labelled=False), toy_dataset(40, 1, labelled=False)
    extractor = feature_extractor(train, tmp_path, FeatureConfig(budget=effort.features.budget))
    judge = CurveJudge.of(extractor, train, test, 20, seed=0, resamples=20)
    request = asked_like(pipeline.conditioner, train, 20, settings=pipeline.settings, seed=0, batch_size=20)
    point = measure_scale(pipeline, judge, request, pipeline.settings)
    assert isinstance(point.accuracy, Missing)
    assert isinstance(point.spread, Score)
    assert isinstance(judge.real_accuracy, Missing)


def test_points_are_read_back_from_json(curve):
    stored = json.loads(json.dumps(curve.to_dict()))
    assert tuple(GuidancePoint.from_dict(point) for point in stored["points"]) == curve.points


def test_the_best_scale_has_the_smallest_distance(curve):
    best = curve.best
    distances = [point.quality.frechet for point in curve.points]
    if isinstance(best, Missing):
        assert all(isinstance(distance, Missing) for distance in distances)
    else:
        assert best.quality.frechet.value == min(distance.value for distance in distances)


def test_the_curve_is_drawn_the_same_each_time(curve, tmp_path):
    for name in ("a.png", "b.png", "a.svg"):
        draw_curve(curve, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    drawn = (tmp_path / "a.svg").read_text()
    assert "precision against recall" in drawn
    assert ">4</text>" in drawn


def test_a_single_scale_is_no_curve(curve, tmp_path):
    with pytest.raises(ValueError, match="two scales or more"):
        draw_curve(replace(curve, points=curve.points[:1]), tmp_path / "a.png")


def test_attributes_of_shapes_are_read_from_the_samples(effort, tmp_path_factory):
    """Real scenes in the place of samples have what was asked for, and others do not."""
    data = open_data(DataConfig("shapes:objects=1-2,train=120,test=60", size=32, channels=3))
    extractor = feature_extractor(data.train, tmp_path_factory.mktemp("cache"), effort.features)
    judge = CurveJudge.of(extractor, data.train, data.test, 40, seed=0, resamples=20)
    fields = data.train.gather(torch.arange(40))
    settings = SampleSettings(DDIM(), Trailing(), guidance=2.0)
    right = judge.judged(to_uint8(fields["x0"]), None, settings, fields["attributes"])
    wrong = judge.judged(to_uint8(fields["x0"]), None, settings, fields["attributes"].roll(7, 0))
    # The reading of clean pictures is exact but for some in a thousand.
    assert min(right.accuracy.value, right.one_object.value, right.binding.value) > 0.9
    assert max(wrong.accuracy.value, wrong.one_object.value, wrong.binding.value) < 0.2
    assert GuidancePoint.from_dict(json.loads(json.dumps(asdict(right)))) == right
