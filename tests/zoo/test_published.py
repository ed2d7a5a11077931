import pytest
import torch

from unfog.recipe.errors import RecipeError
from unfog.recipe.load import dump, load
from unfog.zoo.load import expected_shapes, parameters_of
from unfog.zoo.published import MODELS, named

# Of the papers and READMEs, in millions.
SIZES = {
    "ddpm-cifar10": 35.7,
    "ddpm-celebahq256": 114,
    "iddpm-imagenet64-cond": 270,
    "adm-imagenet64": 296,
    "adm-imagenet128": 422,
    "adm-imagenet256": 554,
    "adm-imagenet512": 559,
    "edm-cifar10-vp": 55.7,
    "edm-imagenet64-cond": 296,
    "dit-xl-2-256": 675,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_a_whole_recipe_that_is_read_back_as_it_was(name: str) -> None:
    recipe = named(name).recipe(name)
    assert load(dump(recipe)) == recipe


@pytest.mark.parametrize("name", MODELS)
def test_the_published_sampler_can_run_on_the_schedule(name: str) -> None:
    model = named(name)
    times = model.sample.grid.times(model.schedule, model.sample.steps)
    assert len(times) == model.sample.steps + 1
    assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("name", MODELS)
def test_every_layout_of_a_model_is_recognised_by_the_names_in_its_files(name: str) -> None:
    model = named(name)
    for number, layout in enumerate(model.layouts):
        names = expected_shapes(model, number)
        recognised = [other for other in model.layouts if other.recognises(names)]
        assert recognised == [layout]


@pytest.mark.parametrize("name", SIZES)
def test_networks_are_as_large_as_published(name: str) -> None:
    assert parameters_of(named(name).network) / 1e6 == pytest.approx(SIZES[name], rel=0.012)  # "270M" is 273 million


def test_learned_variances_are_told_by_the_channels() -> None:
    assert named("adm-imagenet256").recipe("x").variance.learned
    assert not named("ddpm-cifar10").recipe("x").variance.learned


def test_schedules_have_the_published_ends() -> None:
    level = torch.tensor(1.0, dtype=torch.float64)
    assert named("ddpm-cifar10").schedule.alpha(level).item() ** 2 == pytest.approx(4.04e-5, rel=1e-2)
    assert named("edm-cifar10-vp").schedule.sigma(level).item() == 80


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no published model 'ddpm-cifar': .* did you mean ddpm-cifar10\?"):
        named("ddpm-cifar")
