from pathlib import Path

import pytest

from unfog.checkpoint import list_checkpoints
from unfog.recipe.load import override
from unfog.recipe.run import Run
from unfog.recipe.schema import Recipe
from unfog.recipe.train import train
from unfog.training.signals import Stop


def start(folder: Path, recipe: Recipe, trained: Run) -> Run:
    return Run.create(folder, recipe, trained.data().train.info)


def files(run: Run) -> dict[str, bytes]:
    newest = list_checkpoints(run.folder)[0]
    return {str(path.relative_to(newest)): path.read_bytes() for path in newest.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stops", [1, 3])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    tmp_path: Path, tiny: Recipe, trained: Run, stops: int
) -> None:
    run = start(tmp_path / "run", tiny, trained)
    dataset = run.data().train
    for _ in range(stops):
        stop = Stop()
        for _ in train(run, dataset, stop=stop):
            stop.request()
    assert [step.index for step in train(run, dataset)] == list(range(stops + 1, 5))
    assert files(run) == files(trained)


def test_a_run_with_a_learned_schedule_that_was_stopped_ends_like_one_that_was_not(
    tmp_path: Path, tiny: Recipe, trained: Run
) -> None:
    recipe = override(tiny, ["schedule={kind: learned, parts: 8}", "train.steps=3"])
    whole, stopped = (start(tmp_path / name, recipe, trained) for name in ("whole", "stopped"))
    dataset, stop = whole.data().train, Stop()
    for _ in train(whole, dataset):
        pass
    for _ in train(stopped, dataset, stop=stop):
        stop.request()
    assert [step.index for step in train(stopped, dataset)] == [2, 3]
    assert files(stopped) == files(whole)


def test_the_log_has_a_line_for_each_step(trained: Run) -> None:
    assert [record["step"] for record in trained.log()] == [1, 2, 3, 4]


def test_a_finished_run_takes_no_more_steps(trained: Run) -> None:
    before = files(trained)
    assert list(train(trained, trained.data().train)) == []
    assert files(trained) == before


def test_a_checkpoint_of_another_network_is_refused_before_the_first_step(
    tmp_path: Path, tiny: Recipe, trained: Run
) -> None:
    run = start(tmp_path / "run", tiny, trained)
    dataset = run.data().train
    stop = Stop()
    stop.request()
    list(train(run, dataset, stop=stop))
    text = (run.folder / "recipe.yaml").read_text()
    (run.folder / "recipe.yaml").write_text(text.replace("widths: [32]", "widths: [64]"))
    with pytest.raises(ValueError, match=r"with other settings.*\n.*network\.widths: \[32\] there, \[64\] here"):
        train(Run.open(run.folder), dataset)
