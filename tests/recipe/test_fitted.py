import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from unfog.diffusion.schedule import Cosine
from unfog.recipe.fitted import FittedCard, Gain, find_fitted, fitted_path, fixed_tables, store_fitted
from unfog.recipe.kinds import KINDS
from unfog.recipe.run import Run, RunError, StoredWeights
from unfog.sampling.fitted import Fitted, Given, Stage
from unfog.sampling.gaussian import DDIM, Heun, Variable
from unfog.sampling.grid import Karras, TimeGrid, Trailing
from unfog.sampling.guidance.bounds import Clip
from unfog.sampling.request import SampleRequest, SampleSettings
from unfog.sampling.sampler import Sampler, TableSampler

GAIN = Gain(distance=0.03, fixed_distance=0.1, fixed="DDIM on Trailing", noises=8, seed=0, seconds=1.5)
SAMPLER = Fitted(Cosine(), (Stage(1.0, 0.9, (1.0,)), Stage(0.4, 0.37, (1.3, -0.3))))


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A run of its own, to be written into."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


def card(weights: StoredWeights, guidance: float = 1.0) -> FittedCard:
    return FittedCard.of(SampleSettings(SAMPLER, SAMPLER.grid, 2, guidance), weights, GAIN)


def wanted(steps: int = 2, guidance: float = 1.0) -> SampleSettings:
    return SampleSettings(DDIM(), Trailing(), steps, guidance)


def test_a_sampler_is_stored_and_found_again(run: Run) -> None:
    weights = run.weights()
    path = store_fitted(run, card(weights))
    assert path == run.folder / "samplers" / "fitted-2.json"
    assert find_fitted(run, wanted(), weights) == card(weights)
    assert card(weights).settings == SampleSettings(SAMPLER, Given((1.0, 0.4)), 2, 1.0)


def test_the_model_samples_with_it(run: Run) -> None:
    weights = run.weights()
    if run.recipe.schedule != Cosine():
        pytest.fail("the recipe of digits has another schedule: take it for the sampler of this test")
    store_fitted(run, card(weights))
    settings = find_fitted(run, wanted(), weights).settings
    samples = run.pipeline(weights).sample(SampleRequest(2, [1, 2], settings=settings))
    assert samples.x.isfinite().all()


def test_guidance_has_a_sampler_of_its_own(run: Run) -> None:
    weights = run.weights()
    path = store_fitted(run, card(weights, guidance=2.5))
    assert path.name == "fitted-2-guidance-2.5.json"
    assert find_fitted(run, wanted(guidance=2.5), weights).guidance == 2.5
    with pytest.raises(RunError, match=r"no sampler fitted for 2 steps at guidance 1, only fitted-2-guidance-2.5.json"):
        find_fitted(run, wanted(), weights)


def test_what_is_not_there_is_refused_with_what_makes_it(run: Run) -> None:
    with pytest.raises(
        RunError, match=r"no sampler fitted for 6 steps at guidance 3; 'unfog fit-sampler .* --guidance 3"
    ):
        find_fitted(run, wanted(6, 3.0), run.weights())


def test_a_run_that_went_on_refuses_the_old_fit(run: Run) -> None:
    weights = run.weights()
    store_fitted(run, card(weights))
    later = replace(weights, step=weights.step + 1, sha256="0" * 64)
    with pytest.raises(RunError, match=r"fitted to other weights, .* of step 4; these are .* of step 5: 'unfog fit-s"):
        find_fitted(run, wanted(), later)


def test_other_bounds_are_refused(run: Run) -> None:
    weights = run.weights()
    store_fitted(run, card(weights))
    with pytest.raises(RunError, match=r"fitted with the bounds None, not Clip\(limit=1.0\)"):
        find_fitted(run, replace(wanted(), bounds=Clip()), weights)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_is_refused(run: Run, content: str) -> None:
    store_fitted(run, card(run.weights())).write_text(content)
    with pytest.raises(RunError, match=r"fitted-2\.json is damaged: .* makes it anew"):
        find_fitted(run, wanted(), run.weights())


def test_numbers_that_were_changed_by_hand_are_refused(run: Run) -> None:
    path = store_fitted(run, card(run.weights()))
    stored = json.loads(path.read_text())
    stored["sampler"]["stages"][1]["weights"] = [1.3, 0.3]
    path.write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"weights whose sum is 1, not 1\.6"):
        find_fitted(run, wanted(), run.weights())


def test_another_fit_takes_the_place_of_the_first(run: Run) -> None:
    weights = run.weights()
    store_fitted(run, card(weights))
    better = replace(card(weights), gain=replace(GAIN, distance=0.02))
    assert store_fitted(run, better) == fitted_path(run, 2, 1.0)
    assert find_fitted(run, wanted(), weights).gain.distance == 0.02


def test_every_table_of_the_library_and_every_grid_is_among_the_fixed_ones() -> None:
    found = fixed_tables(wanted(), 6)
    samplers, grids = {type(one.sampler) for one in found}, {type(one.grid) for one in found}
    tables = {cls for cls in KINDS[Sampler].values() if issubclass(cls, TableSampler)}
    assert samplers == tables - {Fitted}
    assert grids == set(KINDS[TimeGrid].values()) - {Given}
    assert all(isinstance(one.sampler, TableSampler) for one in found)
    assert all(one.sampler.evaluations(one.steps) <= 6 for one in found)
    assert len(found) == len(set(found))


def test_the_choices_of_a_sampler_are_all_tried_and_as_many_steps_as_can_be() -> None:
    heun = {one.sampler: one.steps for one in fixed_tables(wanted(), 6) if isinstance(one.sampler, Heun)}
    assert heun == {Heun(variable): 3 for variable in Variable}


def test_the_settings_of_the_recipe_are_tried_too() -> None:
    own = SampleSettings(DDIM(0.25), Karras(5.0), 20, 2.0)
    assert SampleSettings(DDIM(0.25), Karras(5.0), 4, 2.0) in fixed_tables(own, 4)
