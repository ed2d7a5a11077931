from dataclasses import replace

import pytest

from unfog.cli.costs import cost_of
from unfog.data.shapes.scene import ATTRIBUTES
from unfog.diffusion.nn.unet_presets import ddpm_cifar10
from unfog.recipe.build import fit_to_data
from unfog.recipe.card import DataCard
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
    # MNIST and CIFAR-10 have ten classes, and the shapes attributes.
    count = {"flowers128": 5, "imagenet": 1000, "imagenet256-latents": 1000}.get(recipe.data.path, 10)
    attributes = ATTRIBUTES if recipe.condition.attributes else ()
    card = DataCard("", "", 0, (channels, size, size), tuple(map(str, range(count))), attributes)
    assert fit_to_data(recipe, card) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_averages_that_are_sampled_from_are_kept(name: str) -> None:
    recipe = named(name)
    assert recipe.average in recipe.train.ema


@pytest.mark.parametrize("name", ["digits", "mnist-small", "mnist-classifier", "cifar10-small", "shapes-small"])
def test_small_recipes_stay_within_what_a_processor_can_do(name: str) -> None:
    recipe = named(name)
    assert recipe.data.size is not None
    assert cost_of(recipe, recipe.data.size, recipe.data.size).flops <= 0.3e9


def test_cifar10_is_the_network_of_ddpm_with_classes() -> None:
    assert replace(named("cifar10").network, num_classes=None) == ddpm_cifar10()


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="did you mean mnist-small"):
        named("mnist-smal")
