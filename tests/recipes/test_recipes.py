from dataclasses import replace

import pytest

from unfog.cli.costs import cost_of
from unfog.diffusion.nn.unet import ddpm_cifar10
from unfog.recipe.build import fit_to_data
from unfog.recipe.errors import RecipeError
from unfog.recipes import RECIPES, named


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bears_the_name_it_is_listed_under(name: str) -> None:
    assert named(name).name == name


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_fits_the_data_that_the_recipe_names(name: str) -> None:
    recipe = named(name)
    channels, size = recipe.data.channels, recipe.data.size
    assert channels is not None
    assert size is not None
    # All data sets of the named recipes have ten classes.
    assert fit_to_data(recipe, (channels, size, size), [str(k) for k in range(10)]) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_averages_that_are_sampled_from_are_kept(name: str) -> None:
    recipe = named(name)
    assert recipe.average in recipe.train.ema


@pytest.mark.parametrize("name", ["digits", "mnist-small", "cifar10-small"])
def test_small_recipes_stay_within_what_a_processor_can_do(name: str) -> None:
    recipe = named(name)
    assert recipe.data.size is not None
    assert cost_of(recipe, recipe.data.size, recipe.data.size).flops <= 0.2e9


def test_cifar10_is_the_network_of_ddpm_with_classes() -> None:
    assert replace(named("cifar10").network, num_classes=None) == ddpm_cifar10()


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="did you mean mnist-small"):
        named("mnist-smal")
