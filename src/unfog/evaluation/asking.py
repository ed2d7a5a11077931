"""Samples that were asked for what the data hold, so that both can be compared."""

from typing import cast

import torch

from unfog.data.dataset import Dataset
from unfog.data.order import permutation
from unfog.diffusion.random import seed_of
from unfog.pipeline import Pipeline
from unfog.sampling.conditioning.conditioner import Label
from unfog.sampling.request import SampleRequest, SampleSettings


def asked_like(
    pipeline: Pipeline, data: Dataset, count: int, *, settings: SampleSettings, seed: int, batch_size: int
) -> SampleRequest:
    """Return a request for samples with the conditions of real examples, chosen at random.

    Of a model that knows classes or attributes, sample k is asked for those of one example; of a model that knows
    neither, nothing is asked for. Rows come again where there are fewer examples than samples.

    Args:
        pipeline: what will draw.
        data: the examples.
        count: number of samples.
        settings: how to sample.
        seed: of the choice and of the samples.
        batch_size: samples at a time; it changes speed and memory only.
    """
    known = pipeline.conditioner.null(1)
    order = torch.from_numpy(permutation(len(data), seed_of("asked like", seed), 0))
    fields = data.gather(order[torch.arange(count) % len(data)])
    attributes = [tuple(row) for row in fields["attributes"].tolist()] if "attributes" in known else None
    return SampleRequest(
        count,
        labels=fields["label"].tolist() if "label" in known else None,
        attributes=cast("list[tuple[int, ...]] | None", attributes),
        seed=seed,
        settings=settings,
        batch_size=batch_size,
    )


def evenly(pipeline: Pipeline, count: int) -> tuple[list[int] | None, int]:
    """Return a class for each sample, ``k % classes``, None unless a model knows classes alone, and their number."""
    classes = pipeline.conditioner.classes if isinstance(pipeline.conditioner, Label) else 0
    return [k % classes for k in range(count)] if classes else None, classes
