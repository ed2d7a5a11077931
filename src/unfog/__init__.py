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
    from unfog.api import fit_sampler, fitted, import_checkpoint, load, save_images, score, train
    from unfog.evaluation.extractors import Features
    from unfog.pipeline import Pipeline, Samples
    from unfog.recipe.schema import Recipe
    from unfog.sampling.request import SampleRequest, SampleSettings

    __version__: str

__all__ = [
    "Features",
    "Pipeline",
    "Recipe",
    "SampleRequest",
    "SampleSettings",
    "Samples",
    "__version__",
    "fit_sampler",
    "fitted",
    "import_checkpoint",
    "load",
    "save_images",
    "score",
    "train",
]

_PLACES = {
    "Features": "unfog.evaluation.extractors",
    "Pipeline": "unfog.pipeline",
    "Recipe": "unfog.recipe.schema",
    "SampleRequest": "unfog.sampling.request",
    "SampleSettings": "unfog.sampling.request",
    "Samples": "unfog.pipeline",
    "fit_sampler": "unfog.api",
    "fitted": "unfog.api",
    "import_checkpoint": "unfog.api",
    "load": "unfog.api",
    "save_images": "unfog.api",
    "score": "unfog.api",
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
