"""Named recipes, one file a run."""

from collections.abc import Callable, Mapping

from unfog.recipe.errors import RecipeError, did_you_mean
from unfog.recipe.schema import Recipe
from unfog.recipes import cifar10, cifar10_small, digits, mnist, mnist_small

RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "digits": digits.recipe,
    "mnist": mnist.recipe,
    "mnist-small": mnist_small.recipe,
    "cifar10": cifar10.recipe,
    "cifar10-small": cifar10_small.recipe,
}
"""All of them, by name."""


def named(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        RecipeError: if there is none; names the nearest one.
    """
    if name not in RECIPES:
        raise RecipeError("", f"there is no recipe {name!r}, only {', '.join(RECIPES)}{did_you_mean(name, RECIPES)}")
    return RECIPES[name]()
