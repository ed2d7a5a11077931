import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unfog.data.dataset import DataInfo
from unfog.machine import machine
from unfog.recipe.card import DataCard
from unfog.recipe.data import open_data
from unfog.recipe.errors import RecipeError
from unfog.recipe.load import override
from unfog.recipe.run import MANIFEST, RECIPE, Run, RunError, Weights, initial_network
from unfog.recipe.schema import Recipe
from unfog.sampling.request import SampleRequest
from unfog.training.ema import Exponential, Power


@pytest.fixture
def info(tiny: Recipe) -> DataInfo:
    return open_data(tiny.data).train.info


def test_a_run_that_was_created_is_opened_as_it_was(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    run = Run.create(tmp_path / "run", tiny, info)
    assert Run.open(tmp_path / "run") == run
    assert run.manifest.data.classes == tuple("0123456789")
    assert run.manifest.data.fingerprint == info.fingerprint


def test_a_run_knows_the_machine_that_it_was_started_on(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    run = Run.create(tmp_path / "run", tiny, info)
    assert Run.open(run.folder).manifest.machine == machine()
    told = json.loads((run.folder / MANIFEST).read_text())
    del told["machine"]
    (run.folder / MANIFEST).write_text(json.dumps(told))
    assert Run.open(run.folder).manifest.machine == {}


def test_the_recipe_is_fitted_to_the_data(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    unfitted = replace(tiny, network=replace(tiny.network, in_channels=3, out_channels=3, num_classes=2))
    assert Run.create(tmp_path / "run", unfitted, info).recipe == tiny


def test_a_folder_that_holds_anything_is_not_written_to(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        Run.create(tmp_path, tiny, info)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_is_not_created_over_another(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    Run.create(tmp_path / "run", tiny, info)
    with pytest.raises(FileExistsError, match="holds a run already"):
        Run.create(tmp_path / "run", tiny, info)


def test_a_folder_without_a_manifest_is_no_run_and_others_are_named(tmp_path: Path, trained: Run) -> None:
    with pytest.raises(RunError, match=r"it has no manifest\.json"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match=r"there is no folder .*runs there: .*tiny"):
        Run.open(trained.folder.parent / "tinny")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (MANIFEST, "{", "manifest.json is damaged"),
        (MANIFEST, "{}", "manifest.json is damaged: format"),
        (RECIPE, "name: [", "recipe.yaml is damaged"),
        (RECIPE, "name: x", "recipe.yaml is damaged"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, tiny: Recipe, info: DataInfo, file: str, content: str, words: str
) -> None:
    folder = Run.create(tmp_path / "run", tiny, info).folder
    (folder / file).write_text(content)
    with pytest.raises(RunError, match=words):
        Run.open(folder)


def test_a_run_of_a_later_format_is_refused(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    path = Run.create(tmp_path / "run", tiny, info).folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(RunError, match="of format 2"):
        Run.open(path.parent)


def test_data_that_changed_are_refused(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    run = Run.create(tmp_path / "run", tiny, replace(info, fingerprint="0" * 64))
    with pytest.raises(RunError, match=r"have changed since the run began: .* 40 examples with the fingerprint 0000"):
        run.data()


def test_the_length_and_the_saving_of_a_run_may_change(trained: Run) -> None:
    changed = trained.changed(["train.steps=9", "save.keep=3", "network.dropout=0.1"])
    assert changed.recipe == override(trained.recipe, ["train.steps=9", "save.keep=3"])
    assert Run.open(trained.folder).recipe == trained.recipe


def test_nothing_else_of_a_run_may_change(trained: Run) -> None:
    with pytest.raises(RecipeError, match=r"network\.dropout, train\.seed would change"):
        trained.changed(["train.steps=9", "network.dropout=0.2", "train.seed=3"])


def test_each_average_is_read_from_its_own_file(trained: Run) -> None:
    groups = [trained.weights(which).group for which in (Weights.OF_RECIPE, Weights.OF_LAST_STEP, 0.1)]
    assert groups == ["ema-0.050", "model", "ema-0.100"]
    assert len({trained.weights(which).sha256 for which in (0.05, 0.1, Weights.OF_LAST_STEP)}) == 3
    assert trained.weights().step == 4


def test_a_number_and_the_power_average_of_that_length_are_the_same_weights(trained: Run) -> None:
    assert trained.weights(Power(0.1)).sha256 == trained.weights(0.1).sha256


def test_an_average_that_is_not_kept_is_refused(trained: Run) -> None:
    with pytest.raises(ValueError, match=r"one of the averages that .* keeps, \[0.05, 0.1\], got 0.2"):
        trained.weights(0.2)
    with pytest.raises(ValueError, match=r"keeps, \[0.05, 0.1\], got Exponential\(decay=0.9999, warmup=True\)"):
        trained.weights(Exponential())


def test_a_run_without_a_checkpoint_has_no_weights(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    run = Run.create(tmp_path / "run", tiny, info)
    assert run.log() == []
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run.pipeline()


def test_the_network_holds_the_weights_and_is_ready_to_answer(trained: Run) -> None:
    network = trained.network(0.1)
    assert not network.training
    weights = trained.weights(0.1).tensors
    assert all(torch.equal(tensor.cpu(), weights[name]) for name, tensor in network.state_dict().items())


def test_the_pipeline_knows_the_classes_and_samples(trained: Run) -> None:
    pipeline = trained.pipeline()
    assert pipeline.classes == tuple("0123456789")
    assert pipeline.sample(SampleRequest(2, labels=[3, 4])).x.shape == (2, 1, 8, 8)


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone(tiny: Recipe) -> None:
    before = torch.random.get_rng_state()
    first, second = initial_network(tiny).state_dict(), initial_network(tiny).state_dict()
    other = initial_network(override(tiny, ["train.seed=1"])).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def adopted(folder: Path, tiny: Recipe, info: DataInfo) -> Run:
    """A run of weights that were trained elsewhere, on data that are not known."""
    recipe = replace(tiny, train=replace(tiny.train, ema=()), average=None)
    card = replace(DataCard.of(info), fingerprint="", count=0)
    return Run.adopt(folder, recipe, card, initial_network(recipe).state_dict(), command="unfog import")


def test_adopted_weights_are_a_run_that_samples_and_tells_where_it_comes_from(
    tmp_path: Path, tiny: Recipe, info: DataInfo
) -> None:
    run = adopted(tmp_path / "run", tiny, info)
    assert Run.open(tmp_path / "run") == run
    assert run.manifest.command == "unfog import"
    assert run.weights().step == 0
    assert run.pipeline().sample(SampleRequest(1, labels=3)).x.shape == (1, 1, 8, 8)


def test_an_adopted_run_is_measured_on_any_data_of_its_kind(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    run = adopted(tmp_path / "run", tiny, info)
    assert run.data().train.info == info
    other = replace(run, manifest=replace(run.manifest, data=replace(run.manifest.data, shape=(1, 16, 16))))
    with pytest.raises(RunError, match=r"is a model of \(1, 16, 16\) with 10 classes; digits/train is \(1, 8, 8\)"):
        other.data()


def test_an_adopted_run_cannot_be_resumed(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    run = adopted(tmp_path / "run", tiny, info)
    with pytest.raises(RunError, match="was imported: it has weights, but no optimiser state"):
        run.changed(["train.steps=8"])


def test_weights_of_another_network_are_not_adopted(tmp_path: Path, tiny: Recipe, info: DataInfo) -> None:
    recipe = replace(tiny, train=replace(tiny.train, ema=()), average=None)
    weights = initial_network(override(recipe, ["network.widths=[64]"])).state_dict()
    with pytest.raises(ValueError, match="does not fit this network"):
        Run.adopt(tmp_path / "run", recipe, DataCard.of(info), weights)
    with pytest.raises(ValueError, match="a recipe with average=None"):
        Run.adopt(tmp_path / "run", tiny, DataCard.of(info), weights)
    assert not (tmp_path / "run").exists()
