import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from unfog.diffusion.schedule import Cosine, VarianceExploding, linear
from unfog.diffusion.times import LogNormal, Uniform
from unfog.evaluation import plots
from unfog.evaluation.loss import LossCurve, Means

SMALL = Means((0.2, 0.4, 0.8), (0.01, 0.02, 0.5))
CURVE = LossCurve(
    "toy", 9, (0.1, 0.5, 0.9), (3.0, 0.0, -3.0), (1.0, 1.0, 1.0), SMALL, Means((1.0, 1.0, 1.0), (0.1,) * 3), SMALL
)


def records(count, **changed):
    made = [
        {"step": k + 1, "examples": 8 * (k + 1), "loss": 1 / (k + 1), "grad_norm": 0.5, "lr": 1e-3, "seconds": 0.1}
        for k in range(count)
    ]
    return [{**record, **changed} for record in made]


def drawings():
    log = records(50)
    charts = [plots.loss_chart(log), plots.gradient_chart(log), plots.speed_chart(log), plots.rate_chart(log)]
    charts += [plots.level_chart(CURVE, CURVE, Uniform(), Cosine()), plots.x0_chart(CURVE, CURVE)]
    return [*charts, plots.scales_chart(Cosine(), [1.0, 0.5]), plots.log_snr_chart(Cosine(), [1.0, 0.5])]


@pytest.fixture(scope="module")
def charts():
    return drawings()


def texts(chart):
    return " ".join(ElementTree.fromstring(chart.svg).itertext())


def test_every_chart_is_well_formed(charts):
    for chart in charts:
        assert ElementTree.fromstring(chart.svg).tag == "svg"


def test_no_chart_loads_or_names_anything_outside(charts):
    assert not any("http" in chart.svg or "@import" in chart.svg for chart in charts)


def test_identifiers_do_not_clash_and_references_lead_somewhere(charts):
    made = [name for chart in charts for name in re.findall(r'\bid="([^"]+)"', chart.svg)]
    used = [name for chart in charts for name in re.findall(r'(?:href="|url\()#([^")]+)', chart.svg)]
    assert len(set(made)) == len(made)
    assert set(used) <= set(made)
    assert used


def test_colours_are_those_of_the_page(charts):
    for chart in charts:
        # White, which matplotlib draws nowhere here, and black would be invisible in one of the two modes.
        assert not re.findall(r"#[0-9a-f]{6}\b", chart.svg)
        assert "var(--muted)" in chart.svg


def test_fonts_are_those_of_the_page_and_styles_hold_for_the_chart_alone(charts):
    assert not any("DejaVu" in chart.svg or "<style" in chart.svg for chart in charts)


def test_a_chart_is_drawn_the_same_each_time(charts):
    assert [chart.svg for chart in drawings()] == [chart.svg for chart in charts]


def test_nothing_global_is_changed():
    before = dict(mpl.rcParams)
    plots.loss_chart(records(5))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("log", [[], records(1), records(9, loss=None, grad_norm=None, lr=None, seconds=None)])
def test_no_chart_is_drawn_of_fewer_than_two_values(log):
    functions = (plots.loss_chart, plots.gradient_chart, plots.speed_chart, plots.rate_chart)
    assert [function(log) for function in functions] == [None] * 4


def test_values_that_were_not_finite_are_left_out():
    log = [*records(20), {"step": 21, "loss": None, "applied": False}]
    chart = plots.loss_chart(log)
    assert "not applied" in texts(chart)
    assert "not applied" not in texts(plots.loss_chart(records(20)))


def test_a_long_log_makes_no_longer_chart():
    short, long = (len(plots.loss_chart(records(count)).svg) for count in (1_000, 40_000))
    assert long < 2 * short


def test_losses_below_zero_are_drawn_too():
    assert "loss" in texts(plots.loss_chart(records(9, loss=-1.0)))


def test_a_constant_stays_what_it_is_when_smoothed():
    # A running sum of 3,000 numbers loses a few of its 53 bits.
    assert plots.smoothed(range(3000), [0.7] * 3000)[1] == pytest.approx([0.7] * 240, abs=1e-12)


def test_a_straight_line_stays_straight_when_smoothed_except_at_its_end():
    steps, values = plots.smoothed(range(600), [float(k) for k in range(600)])
    before_end = [(s, v) for s, v in zip(steps, values, strict=True) if s < 580]
    assert all(v == pytest.approx(s, abs=1e-9) for s, v in before_end)


def test_smoothing_begins_and_ends_with_the_log():
    steps, _ = plots.smoothed(range(5000), [0.0] * 5000)
    assert (steps[0], steps[-1]) == (0, 4999)


def test_the_level_chart_names_its_three_curves(charts):
    assert {"predict 0", "training", "held out"} <= set(ElementTree.fromstring(charts[4].svg).itertext())


def test_densities_that_reach_beyond_the_levels_are_drawn():
    plots.level_chart(CURVE, CURVE, LogNormal(), VarianceExploding())


def test_each_evaluation_is_marked():
    counted = [plots.log_snr_chart(Cosine(), times).svg.count("<use") for times in ([1.0], [1.0, 0.7, 0.4, 0.2])]
    assert counted[1] - counted[0] == 3


@pytest.mark.parametrize("schedule", [VarianceExploding(), linear()], ids=["exploding", "table"])
def test_schedules_with_large_or_infinite_values_are_drawn(schedule):
    for chart in (plots.scales_chart(schedule, [1.0, 0.3]), plots.log_snr_chart(schedule, [1.0, 0.3])):
        assert "nan" not in chart.svg
        assert "inf" not in chart.svg


def test_grey_levels_are_roots_on_the_scale_of_eight_bits():
    # An error of 2 turns black into white.
    assert plots.grey_levels([4.0, 0.0]) == [255.0, 0.0]
