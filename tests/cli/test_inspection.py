from pathlib import Path

import pytest

from unfog.cli import main
from unfog.recipes import RECIPES

Capture = pytest.CaptureFixture[str]


def numbers(text: str) -> list[list[float]]:
    """Return the rows of a table that hold numbers only."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    return [[float(cell) for cell in row] for row in rows]


def test_recipes_are_listed_with_what_they_cost(capsys: Capture) -> None:
    assert main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in RECIPES)
    assert "35.8 M" in told


def test_a_schedule_is_shown_in_numbers(capsys: Capture) -> None:
    assert main(["inspect", "schedule", "rectified-flow", "shift=3", "--points", "3"]) == 0
    told = capsys.readouterr().out
    assert "rectified_flow(shift=3.0)" in told
    assert [row[:3] for row in numbers(told)] == [[0, 1, 0], [0.5, 0.25, 0.75], [1, 0, 1]]


@pytest.mark.parametrize("which", ["digits", "RUN"])
def test_the_schedule_of_a_recipe_or_run_is_shown(which: str, run: Path, capsys: Capture) -> None:
    assert main(["inspect", "schedule", str(run) if which == "RUN" else which]) == 0
    assert "cosine" in capsys.readouterr().out


def test_schedules_are_drawn_over_each_other(here: Path, capsys: Capture) -> None:
    others = ["--beside", "{kind: shifted, schedule: cosine, scale: 0.25}", "--beside", "digits", "--beside", "cosine"]
    assert main(["inspect", "schedule", "linear-betas", "steps=40", *others, "--points", "2", "--plot", "all.svg"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == "all.svg"
    assert "shifted(schedule=cosine, scale=0.25)" in told
    assert "linear_betas(steps=40, clean=exact)" in told
    drawn = Path("all.svg").read_text()
    assert all(words in drawn for words in ("alpha_bar", ">beta<", "linear-betas steps=40", ">cosine<", ">digits<"))


def test_a_sampler_is_shown_as_its_table(capsys: Capture) -> None:
    arguments = ["--schedule", "rectified_flow", "--grid", "trailing", "--steps", "2"]
    assert main(["inspect", "sampler", "euler", *arguments]) == 0
    told = capsys.readouterr().out
    assert "ddim(eta=0.0) on rectified_flow(shift=1.0), trailing, 2 steps" in told
    # From t = 1 to 1/2 Euler's step on the flow is the mean of x and x0.
    assert numbers(told) == [[0, 1, 0.5, 0.5, 0, 0.5], [1, 0.5, 0, 1, 0, 0]]


def test_a_look_ahead_is_told_from_a_step(capsys: Capture) -> None:
    assert main(["inspect", "sampler", "heun", "--steps", "3"]) == 0
    assert capsys.readouterr().out.count("looks ahead") == 2


def test_noise_that_is_raised_before_an_evaluation_is_told_from_a_step(capsys: Capture) -> None:
    assert main(["inspect", "sampler", "edm_churn", "--steps", "3"]) == 0
    # Not before the first, which begins at the end of the schedule.
    assert capsys.readouterr().out.count("before the evaluation") == 2


def test_the_sampler_of_a_recipe_is_shown_as_it_is_there(capsys: Capture) -> None:
    assert main(["inspect", "sampler", "cifar10", "--steps", "3"]) == 0
    assert "ddpm(variance=beta) on linear_betas(steps=1000, clean=exact), trailing, 3 steps" in capsys.readouterr().out


def test_a_network_is_shown_with_the_sum_of_its_parts(capsys: Capture) -> None:
    assert main(["inspect", "network", "digits", "network.widths=[32, 32]", "--depth", "1"]) == 0
    told = capsys.readouterr().out
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in told.splitlines() if line.startswith("│")
    ]
    counts = [int(row[3].replace(",", "")) for row in cells]
    assert sum(counts[:-1]) == counts[-1]


def test_a_run_is_shown(run: Path, capsys: Capture) -> None:
    assert main(["inspect", "run", str(run)]) == 0
    told = capsys.readouterr().out
    for words in ("digits/train, 40 examples of 1x8x8, 10 classes", "4 of 4 saved", "step-00000004", "widths: [32]"):
        assert words in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["schedule", "cosin"], "did you mean cosine?"),
        (["schedule", "cosine", "--points", "1"], "--points: expected at least 2, got 1"),
        (["schedule", "rectified_flow", "shift=-1"], "expected a positive shift, not -1.0"),
        (["schedule", "rectified_flow", "shift"], "expected name=value, got 'shift'"),
        (["schedule", "digits", "shift=2"], "a recipe's own settings are shown"),
        (["schedule", "cosine", "--beside", "cosin"], "did you mean cosine?"),
        (["schedule", "cosine", "--plot", "curve.pdf"], "expected a file that ends in .png or .svg, got curve.pdf"),
        (["sampler", "huen"], "did you mean heun?"),
        (["sampler", "heun", "--steps", "0"], "steps of at least 1"),
        (["network", "digit"], "did you mean digits?"),
        (["network", "digits", "data.size=null"], "give --size"),
        (["network", "digits", "--depth", "0"], "depth is 0"),
        (["run", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: list[str], words: str, here: Path, capsys: Capture) -> None:
    assert main(["inspect", *arguments]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
