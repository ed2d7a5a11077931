"""Named recipes, one file a run."""

from collections.abc import Callable, Mapping

from unfog.recipe.errors import RecipeError, did_you_mean
from unfog.recipe.schema import Recipe
from unfog.recipes import (
    adm_imagenet256,
    cifar10,
    cifar10_small,
    ddpm_cifar10,
    digits,
    dit_xl_imagenet256,
    edm_cifar10,
    flowers128_small,
    iddpm_imagenet64,
    mnist,
    mnist_classifier,
    mnist_small,
    shapes_small,
)

RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "digits": digits.recipe,
    "mnist": mnist.recipe,
    "mnist-small": mnist_small.recipe,
    "mnist-classifier": mnist_classifier.recipe,
    "shapes-small": shapes_small.recipe,
    "cifar10": cifar10.recipe,
    "cifar10-small": cifar10_small.recipe,
    "flowers128-small": flowers128_small.recipe,
    "ddpm-cifar10": ddpm_cifar10.recipe,
    "edm-cifar10": edm_cifar10.recipe,
    "iddpm-imagenet64": iddpm_imagenet64.recipe,
    "adm-imagenet256": adm_imagenet256.recipe,
    "dit-xl-imagenet256": dit_xl_imagenet256.recipe,
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
