"""What a model is asked for when nobody says: conditions that suit it, from its classes or from the data."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from unfog.data.dataset import Dataset
from unfog.data.order import permutation
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.sampling.conditioning.conditioner import Conditioner, Label
from unfog.sampling.request import Condition, SampleRequest, SampleSettings, Values


def condition_of(conditioner: Conditioner, data: Dataset, ids: Tensor) -> Condition:
    """Return the classes and attributes of real examples, as far as a model is told them.

    Args:
        conditioner: of the model.
        data: the examples.
        ids: ``(B,)`` int64, which of them.
    """
    known, fields = conditioner.null(1), data.gather(ids)
    labels = cast("list[int]", fields["label"].tolist()) if "label" in known else None
    rows = [tuple(row) for row in fields["attributes"].tolist()] if "attributes" in known else None
    return Condition(labels, cast("Sequence[Values] | None", rows))


def asked_like(
    conditioner: Conditioner, data: Dataset, count: int, *, settings: SampleSettings, seed: int, batch_size: int
) -> SampleRequest:
    """Return a request for samples with the conditions of real examples, chosen at random.

    So both can be compared. Of a model that knows classes or attributes, sample k is asked for those of one example; of
    a model that knows neither, nothing is asked for. Rows come again where there are fewer examples than samples.

    Args:
        conditioner: of the model that will draw.
        data: the examples.
        count: number of samples.
        settings: how to sample.
        seed: of the choice and of the samples.
        batch_size: samples at a time; it changes speed and memory only.
    """
    order = torch.from_numpy(permutation(len(data), seed_of("asked like", seed), 0))
    chosen = order[torch.arange(count) % len(data)]
    return SampleRequest.of(
        count, condition_of(conditioner, data, chosen), seed=seed, settings=settings, batch_size=batch_size
    )


def in_turn(conditioner: Conditioner, examples: Dataset | None, numbers: Sequence[int]) -> Condition:
    """Return the conditions of some samples in a fixed order, in which each is as frequent as any other.

    Sample k has the class ``k % classes`` or, of a model that is told attributes, those of example ``k % examples``.

    Args:
        conditioner: of the model.
        examples: whose attributes are asked for; needed by no other model.
        numbers: of the samples.

    Raises:
        ValueError: if examples are needed and there are none.
    """
    if needs_examples(conditioner):
        require(examples is not None, "examples whose attributes are asked for, got none")
        assert examples is not None
        return condition_of(conditioner, examples, torch.tensor(numbers) % len(examples))
    classes = classes_in_turn(conditioner)
    return Condition([k % classes for k in numbers] if classes else None)


def needs_examples(conditioner: Conditioner) -> bool:
    """Tell whether ``in_turn`` takes what it asks for from examples: whether a model is told attributes."""
    return "attributes" in conditioner.null(1)


def classes_in_turn(conditioner: Conditioner) -> int:
    """Return over how many classes ``in_turn`` spreads samples evenly; 0 unless a model knows classes alone."""
    return conditioner.classes if isinstance(conditioner, Label) else 0
