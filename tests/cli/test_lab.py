from pathlib import Path

import pytest

from unfog.cli import main

Capture = pytest.CaptureFixture[str]
SMALL = ["--samples", "50", "--steps", "3,6", "--order-steps", "10,20"]


def test_the_laboratory_prints_a_table_and_writes_a_page(here: Path, capsys: Capture) -> None:
    assert main(["lab", *SMALL, "--samplers", "ddim,dpmpp", "--data", "ring"]) == 0
    told = capsys.readouterr()
    rows = [line for line in told.out.splitlines() if line.startswith("│")]
    assert len(rows) == 4
    assert "data ring, schedule cosine, grid trailing, parameterization v, output in float64" in told.out
    assert "ddim: 2 of 2 numbers of steps, order" in told.err
    assert told.out.splitlines()[-1] == "lab.html"
    assert "unfog lab --samplers ddim,dpmpp --steps 3,6 --data ring --samples 50" in (here / "lab.html").read_text()


def test_every_option_has_its_effect(here: Path, capsys: Capture) -> None:
    data = "[{mean: [-1, 0], std: [0.2, 0.3]}, {mean: [1, 0.5], weight: 2}]"
    arguments = [
        *("--samplers", "{kind: ddim, eta: 0.5},heun", "--schedule", "{kind: rectified_flow, shift: 3}"),
        *("--grid", "karras", "--parameterization", "flow", "--precision", "float32", "--guidance", "2"),
        *("--seed", "3", "--data", data, "--shown", "4", "--out", "deep.html"),
    ]
    assert main(["lab", *SMALL, *arguments]) == 0
    told = capsys.readouterr().out
    assert "data 2 components, schedule {kind: rectified_flow, shift: 3.0}, grid karras" in told
    assert "parameterization flow, output in float32, guidance 2, samples 50, seed 3" in told
    assert "{kind: ddim, eta: 0.5}" in told
    assert "at 4 steps" in (here / "deep.html").read_text()


def test_orders_need_not_be_measured(capsys: Capture) -> None:
    assert main(["lab", "--samples", "50", "--steps", "3", "--order-steps", "none", "--samplers", "ddim"]) == 0
    assert "order" not in capsys.readouterr().err


def test_a_sampler_that_refuses_all_steps_ends_with_status_1(capsys: Capture) -> None:
    arguments = ["--steps", "2000", "--grid", "leading", "--samplers", "ddim", "--order-steps", "none"]
    assert main(["lab", "--samples", "50", *arguments]) == 2
    assert "expected at most 1000 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samplers", "huen"], "did you mean heun?"),
        (["--samplers", ""], "--samplers: expected a list such as a,b,c"),
        (["--steps", "0"], "--steps: expected whole numbers of at least 1"),
        (["--steps", "5.5"], "--steps: expected whole numbers of at least 1"),
        (["--order-steps", "nine"], "--order-steps: expected whole numbers of at least 1"),
        (["--data", "two-mode"], "did you mean two-modes?"),
        (["--data", "[{mean: [0, 0], std: [0, 1]}]"], "std above 0 along both axes"),
        (["--data", "[{men: [0, 0]}]"], "there is no such setting; did you mean --data.components"),
        (["--parameterization", "eps"], "expected a prediction that says something at t = 1"),
        (["--precision", "float31"], "did you mean float32?"),
        (["--guidance", "nan"], "expected a finite guidance scale, not nan"),
        (["--samples", "3"], "expected at least 50 samples"),
        (["--shown", "0"], "--shown: expected at least 1 step, got 0"),
        (["--out", "."], "--out: expected a file such as lab.html, got the folder ."),
        (["--schedule", "cosin"], "did you mean cosine?"),
        (["--grid", "trail"], "--grid: expected one of trailing"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    arguments: list[str], words: str, here: Path, capsys: Capture
) -> None:
    assert main(["lab", *arguments]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""
    assert not (here / "lab.html").exists()
