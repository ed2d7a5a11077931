"""Diffusion models you can trust: train, sample, measure and understand them.

::

    import unfog

    pipeline = unfog.train("digits", out="runs/digits")
    samples = pipeline.sample(unfog.SampleRequest(count=10, labels=list(range(10)), seed=0))
    unfog.save_images(samples, "samples")

What is named here is imported when it is first used: importing ``unfog`` alone does not import torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unfog.api import fit_sampler, fitted, load, save_images, train
    from unfog.pipeline import Pipeline, SampleRequest, Samples, SampleSettings
    from unfog.recipe.schema import Recipe

    __version__: str

__all__ = [
    "Pipeline",
    "Recipe",
    "SampleRequest",
    "SampleSettings",
    "Samples",
    "__version__",
    "fit_sampler",
    "fitted",
    "load",
    "save_images",
    "train",
]

_PLACES = {
    "Pipeline": "unfog.pipeline",
    "Recipe": "unfog.recipe.schema",
    "SampleRequest": "unfog.pipeline",
    "SampleSettings": "unfog.pipeline",
    "Samples": "unfog.pipeline",
    "fit_sampler": "unfog.api",
    "fitted": "unfog.api",
    "load": "unfog.api",
    "save_images": "unfog.api",
    "train": "unfog.api",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("unfog")
    if name not in _PLACES:
        raise AttributeError(f"module 'unfog' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, "__version__"])
