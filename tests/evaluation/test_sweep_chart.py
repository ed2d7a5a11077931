from dataclasses import replace

import pytest
from PIL import Image

from unfog.evaluation.scores import Comparison, Missing
from unfog.evaluation.sweep import Point
from unfog.evaluation.sweep_chart import draw_sweep
from unfog.metrics.interval import Score

NONE = Missing("not measured")


def score(value):
    return Score(value, 0.9 * value, 1.1 * value, 10, "")


def points(scales=(1.0,), distance=True, quality=True):
    made = []
    for scale in scales:
        for sampler in ("ddim", "heun"):
            for steps in (4, 8, 16):
                some = score(1 / steps)
                compared = Comparison(some, some, some, some, some) if quality else Comparison.without(NONE)
                made.append(Point(sampler, "trailing", steps, scale, steps, 0.1, some if distance else NONE, compared))
    return made


def height_over_width(path):
    with Image.open(path) as image:
        return image.height / image.width


@pytest.mark.parametrize(
    ("drawn", "rows", "columns"),
    [
        (points(), 2, 1),
        (points(quality=False), 1, 1),
        (points(distance=False), 1, 1),
        (points((1.0, 2.0, 4.0)), 3, 3),
    ],
)
def test_there_is_a_row_for_each_measure_and_a_column_for_each_guidance(tmp_path, drawn, rows, columns):
    draw_sweep(drawn, NONE, {1.0: score(0.001)}, tmp_path / "a.png")
    assert height_over_width(tmp_path / "a.png") == pytest.approx(rows * 3.1 / (columns * 4.3), rel=0.01)


def test_the_picture_is_the_same_each_time(tmp_path):
    floor = Comparison(score(0.03), *[NONE] * 4)
    for name in ("a.png", "b.png"):
        draw_sweep(points(), floor, {1.0: score(0.001)}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_an_interval_that_reaches_zero_can_be_drawn(tmp_path):
    touching = [replace(point, distance=Score(0.1, 0.0, 0.2, 4, "")) for point in points(quality=False)]
    draw_sweep(touching, NONE, {}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="a distance to draw"):
        draw_sweep(points(distance=False, quality=False), NONE, {}, tmp_path / "a.png")
