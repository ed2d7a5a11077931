from dataclasses import replace

import pytest

from unfog.evaluation.scores import Missing
from unfog.evaluation.tables import (
    counted,
    duration,
    headlines,
    metrics,
    missing,
    rounded,
    setting_groups,
    size,
    spoken,
)
from unfog.metrics.interval import Score


def shown(groups):
    return {(group.name, line.depth, line.name): line.value for group in groups for line in group.settings}


def test_a_score_is_written_with_the_digits_that_its_interval_supports():
    assert rounded(Score(12.34567, 11.9, 12.8, 9)) == ("12.35", "11.90 to 12.80")
    assert rounded(Score(1234.567, 1100, 1400, 9)) == ("1235", "1100 to 1400")
    assert rounded(Score(0.876543, 0.85, 0.9, 9), percent=True) == ("87.7 %", "85.0 to 90.0 %")


def test_a_score_without_spread_is_written_to_a_few_digits():
    assert rounded(Score(0.123456, 0.123456, 0.123456, 9))[0] == "0.12346"
    assert spoken(Score(0.0, 0.0, 0.0, 9)) == "0.0 (0.0 to 0.0)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (4.56, "4.56 s"), (59.96, "60 s"), (73.4, "1 min 13 s"), (7323, "2 h 2 min")],
)
def test_time_spans_are_written_in_units_for_people(seconds, text):
    assert duration(seconds) == text


def test_bytes_are_written_in_units_for_people():
    assert [size(n) for n in (12, 2048, 3 * 1024**2, 5 * 1024**3)] == ["12 bytes", "2 KiB", "3 MiB", "5 GiB"]


def test_every_setting_is_shown_at_its_place():
    settings = {"name": "x", "train": {"lr": 0.0002, "ema": [0.05, 0.1], "decay": {"kind": "cosine", "final": None}}}
    assert shown(setting_groups(settings)) == {
        ("general", 0, "name"): "x",
        ("train", 0, "lr"): "0.0002",
        ("train", 0, "ema"): "[0.05, 0.1]",
        ("train", 0, "decay"): None,
        ("train", 1, "kind"): "cosine",
        ("train", 1, "final"): "null",
    }


def test_long_lists_are_shown_by_their_ends_and_empty_branches_as_empty():
    groups = setting_groups({"a": {"table": list(range(1000)), "none": {}, "flag": True}})
    assert list(shown(groups).values()) == ["1000 values, 0 to 999", "–", "true"]


def test_nothing_measured_gives_nothing_to_show():
    assert (headlines(None), metrics(None)) == ([], None)


def test_every_feature_score_at_the_top_names_its_network_and_its_count(measured):
    found = measured[-1]
    network, count = found.scores.features.name, f"{found.scores.count}"
    for headline in headlines(found):
        if headline.name in ("Fréchet distance", "Precision", "Recall"):
            assert network in headline.detail
            assert count in headline.detail


def test_every_metric_stands_beside_what_real_images_get(measured):
    found = measured[-1]
    rows = {row.name: row for row in metrics(found).rows}
    assert rows["Fréchet distance"].samples == spoken(found.scores.samples.frechet)
    assert rows["Recall"].floor == spoken(found.scores.floor.recall, percent=True)
    assert rows["Classification accuracy score"].floor == spoken(found.scores.accuracy.yardstick, percent=True)


def test_the_classes_are_those_of_the_accuracy(measured):
    found = measured[-1]
    bars = metrics(found).bars
    assert {bar.name: bar.percent / 100 for bar in bars} == pytest.approx(
        {name: score.value for name, score in found.scores.accuracy.per_class.items()}
    )


def test_what_is_missing_is_told_once_for_each_reason_and_stands_nowhere_else(measured):
    found = measured[-1]
    few, none = Missing("there are few"), Missing("there are none")
    some = replace(found.scores.samples, frechet=few, recall=few, kernel=None, limit=None)
    scores = replace(found.scores, samples=some, floor=replace(found.scores.floor, frechet=few, recall=few))
    scores = replace(scores, accuracy=none)
    assert missing(scores) == (
        "Fréchet distance and recall: there are few",
        "classification accuracy score: there are none",
    )
    told = metrics(replace(found, scores=scores))
    assert [row.name for row in told.rows] == ["Precision", "Density", "Coverage", "Copying"]
    assert (told.bars, told.missing) == ((), missing(scores))
    names = [headline.name for headline in headlines(replace(found, scores=scores))]
    assert names == ["Precision", "Held-out loss", "Sampling"]


def test_things_are_counted_in_words():
    assert [counted(1, "image"), counted(2000, "image"), counted(2, "class", "es")] == [
        "1 image",
        "2,000 images",
        "2 classes",
    ]
