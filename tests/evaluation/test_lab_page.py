import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from unfog.diffusion.parameterization import V
from unfog.diffusion.schedule import Cosine
from unfog.evaluation.lab import charts
from unfog.evaluation.lab.field import Field
from unfog.evaluation.lab.measure import Laboratory, Order, Setup
from unfog.evaluation.lab.mixture import PRESETS
from unfog.evaluation.lab.page import SECTIONS, PageInputs, render, told_order, write_page
from unfog.sampling.gaussian import DDPM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M, UniPC


def made(samplers, guidance=None, steps=(3, 6), shown=6, order_steps=(10, 20)):
    laboratory = Laboratory(Setup(Field(PRESETS["two-modes"], guidance), Cosine(), Trailing(), V(), samples=60))
    results = [laboratory.result(name, sampler, steps, order_steps) for name, sampler in samplers.items()]
    return PageInputs("A <title>", "unfog lab --x '<y>'", {"Data": "two-modes"}, laboratory, results, shown)


@pytest.fixture(scope="module")
def inputs():
    return made({"dpmpp": DPMSolverPP2M(), "heun": Heun(), "ddpm": DDPM()})


@pytest.fixture(scope="module")
def page(inputs):
    return render(inputs)


def charts_of(page):
    return re.findall(r"<svg viewBox.*?</svg>", page, flags=re.DOTALL)


def test_every_section_is_there_and_can_be_gone_to(page):
    for name, title in SECTIONS.items():
        assert f'<section id="{name}">' in page
        assert f'<a href="#{name}">{title}</a>' in page


def test_the_page_loads_nothing(page):
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "@import" not in page
    assert "<script" not in page


def test_every_chart_is_well_formed_and_its_identifiers_are_its_own(page):
    found = charts_of(page)
    # Path, order of paths, order of variances, law, three trajectories and marginals.
    assert len(found) >= 4 + 3 + 2
    names = [name for chart in found for name in re.findall(r'\bid="([^"]+)"', chart)]
    assert len(names) == len(set(names))
    for chart in found:
        assert ElementTree.fromstring(chart).tag == "svg"
        assert not re.findall(r"#[0-9a-f]{6}\b", chart)


def test_every_reading_stands_in_the_tables(page, inputs):
    text = re.sub(r"<[^>]+>", " ", page)
    for result in inputs.results:
        assert result.name in text
    assert f"{inputs.results[0].order.slope:.2f}" in text
    assert str(inputs.results[1].readings[1].evaluations) == "11"


def test_what_was_typed_is_no_markup(page):
    assert "<title>A &lt;title&gt;</title>" in page
    assert "'<y>'" not in page


def test_the_page_is_the_same_each_time(inputs, page):
    assert render(inputs) == page


def test_refusals_are_told(tmp_path):
    inputs = made({"unipc": UniPC(3)}, steps=(2, 4), shown=2, order_steps=())
    write_page(tmp_path / "lab.html", inputs)
    page = (tmp_path / "lab.html").read_text()
    assert "Unipc at 2 steps: expected at least 3 steps" in page
    assert "No sampler ran at 2 steps." in page
    assert "No order was measured." in page


def test_guidance_is_told_and_marginals_are_those_of_the_exact_solution():
    page = render(made({"dpmpp": DPMSolverPP2M()}, guidance=2.0, order_steps=()))
    assert "guided towards component k" in page
    assert "histogram under the exact solution" in page
    assert "As many exact samples" not in page


def test_there_is_no_path_where_every_sampler_injects_noise():
    page = render(made({"ddpm": DDPM()}, order_steps=()))
    assert "No sampler without noise was run." in page


def test_looks_differ_among_more_samplers_than_there_are_colours():
    looks = charts.looks_of([str(k) for k in range(20)])
    assert len(set(looks.values())) == 20


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (Order(2, 1.987, 0.0123, (1, 2, 3), (1.0, 1.0, 1.0), "path"), "1.99 ± 0.01"),
        (Order(2, 1.987, None, (1, 2), (1.0, 1.0), "path"), "1.99"),
        (
            Order(4, None, None, (1,), (1e-13,), "path"),
            "not measurable: errors as small as those of the exact solution",
        ),
    ],
)
def test_an_order_is_told_with_its_error(order, told):
    assert told_order(order) == told


def test_the_example_of_the_guide_runs(capsys):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "laboratory.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    exec(example.replace("samples=500", "samples=50"), {})
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(2.0, abs=0.1)
