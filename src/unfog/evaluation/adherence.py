"""Whether samples show what was asked for: accuracy of the attributes of the set ``shapes``, read from the pictures.

Of each sample the objects are found (``reading``). The two that were described are matched to found ones, each to a
different one, so that as many of the named attributes as possible are right; an attribute is right if it is that of the
object found for it. What is counted then:

- each attribute, over the samples for which it was named;
- all named attributes of a sample, together and by the number of objects that was asked for;
- binding: of samples for which two objects were described, those on which two objects are found that have all the
  attributes named of the first and of the second. A model that paints the right colours and shapes but exchanges
  them fails here.

Two yardsticks stand beside it. The reading's own error is measured on real examples, clean and disturbed, by the same
count. Chance is what samples score that were made for something else: those of the set's other examples.

Source: the aim, compositional binding measured by detection, is that of D. Ghosh, H. Hajishirzi and L. Schmidt,
"GenEval", 2023, arXiv 2310.11513; here the detection is exact up to the stated error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.asking import in_turn, needs_examples
from unfog.data.dataset import Attribute, Dataset, to_uint8
from unfog.data.shapes.scene import ATTRIBUTES, BACKGROUND, COUNT, RELATION, SLOT_COLUMNS, relation_of
from unfog.diffusion.checks import require
from unfog.diffusion.random import seed_of
from unfog.evaluation.disturbances import Blur, Clean, Disturbance, Elastic, Jpeg, Noise, Resized, Then
from unfog.evaluation.measure import draw
from unfog.evaluation.reading import Found, Reading, read
from unfog.metrics.interval import Score, proportion
from unfog.pipeline import Pipeline
from unfog.sampling.request import SampleRequest

DISTURBANCES: tuple[Disturbance, ...] = (Clean(), Then(Blur(0.7), Noise(0.05)))
"""What the reading's own error is stated for beside every result: exact drawings, and ones as soft as samples are."""

MORE_DISTURBANCES: tuple[Disturbance, ...] = (
    Clean(),
    Blur(0.5),
    Blur(1.0),
    Noise(0.05),
    Noise(0.1),
    Then(Blur(0.7), Noise(0.05)),
    Jpeg(75),
    Resized(0.75),
    Elastic(0.5),
)
"""What the guide tells the reading's own error for."""


@dataclass(frozen=True)
class Adherence:
    """How far samples show what was asked for.

    Attributes:
        named: share of the samples on which all named attributes are right.
        attributes: by attribute, the share of the samples for which it was named that have it right.
        by_count: the same as ``named`` by the number of objects that was asked for, "1" to "4", where it was named.
        binding: of samples for which two objects were described, the share on which both have all their attributes;
            None if there were none.
        chance: ``named``, ``binding`` and each attribute, by name, of the same samples for what others were made for.
        reading_error: share of real examples whose attributes are not all read rightly, by what was done to them; it
            limits how much of what is missing above is the model's.
        samples: how many were read.
    """

    named: Score
    attributes: Mapping[str, Score]
    by_count: Mapping[str, Score]
    binding: Score | None
    chance: Mapping[str, Score]
    reading_error: Mapping[str, Score]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as a dictionary that JSON can hold."""
        return asdict(self)

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Adherence":
        """Return what ``to_dict`` turned into a dictionary."""
        several = {
            name: {key: Score(**score) for key, score in stored[name].items()}
            for name in ("attributes", "by_count", "chance", "reading_error")
        }
        binding = stored["binding"]
        return Adherence(
            named=Score(**stored["named"]),
            binding=None if binding is None else Score(**binding),
            samples=stored["samples"],
            **several,
        )


def measure_adherence(
    pipeline: Pipeline, dataset: Dataset, *, samples: int, guidance: float, seed: int, batch_size: int
) -> Adherence:
    """Draw samples for the attributes of real examples and read from them whether they have them.

    Args:
        pipeline: a model that is told attributes.
        dataset: the test part of the set ``shapes``: its first examples say what is asked for.
        samples: how many are drawn, at most as many as the set has examples.
        guidance: scale of classifier-free guidance.
        seed: of the samples, and of what is done to real examples to measure the reading's own error.
        batch_size: samples at a time; it changes speed and memory only.

    Raises:
        ValueError: if the data are not of ``shapes``, or the model cannot do what is asked.
        FloatingPointError: if a sample is not finite.
    """
    require(1 <= samples <= len(dataset), f"1 to {len(dataset)} samples, as many as examples, got {samples}")
    wanted = _attributes_of(dataset, samples)
    told = needs_examples(pipeline.conditioner)
    require(told, "a model that was trained with attributes: set condition.attributes=true")
    request = SampleRequest.of(
        samples,
        in_turn(pipeline.conditioner, dataset, range(samples)),
        seed=seed,
        settings=pipeline.settings.with_guidance(guidance),
        batch_size=batch_size,
    )
    return adherence_of(draw(pipeline, request), wanted, dataset, seed=seed)


def adherence_of(pictures: Tensor, wanted: Tensor, dataset: Dataset, *, seed: int) -> Adherence:
    """Read from pictures whether they show what was asked for, and state the reading's own error beside it.

    Args:
        pictures: ``(B, 3, S, S)`` uint8, or floats in [-1, 1].
        wanted: ``(B, A)`` int64, as for ``score_adherence``.
        dataset: the test part of the set ``shapes``, on whose pictures the error is measured.
        seed: of what is done to these pictures.
    """
    return score_adherence(pictures, wanted, reading_error(dataset, count=min(len(dataset), 1000), seed=seed))


def readable(attributes: Sequence[Attribute]) -> bool:
    """Tell whether attributes are those of the set ``shapes``, which can be read from a picture."""
    return tuple(attributes) == ATTRIBUTES


def score_adherence(pictures: Tensor, wanted: Tensor, reading_error: Mapping[str, Score]) -> Adherence:
    """Read from pictures whether they show what was asked for.

    Args:
        pictures: ``(B, 3, S, S)`` uint8, or floats in [-1, 1].
        wanted: ``(B, A)`` int64 in the order of ``ATTRIBUTES``, those not named being ``Attribute.none``.
        reading_error: as ``reading_error`` returns it for pictures of this size.

    Raises:
        ValueError: if shapes or values do not fit, or nothing is named.
    """
    _check_wanted(wanted, len(pictures))
    named = wanted != _nulls()
    require(bool(named.any()), "attributes to be named, got none in any row")
    readings = read(pictures)
    right = judged(readings, wanted)
    about = f"{len(pictures)} samples read"
    counts = {
        value: wanted[:, COUNT] == k
        for k, value in enumerate(ATTRIBUTES[COUNT].values)
        if bool((wanted[:, COUNT] == k).any())
    }
    whole = (right | ~named).all(1)
    scored = _scored(right, named, about)
    chance = {}
    if len(pictures) > 1:
        # Far enough that neighbours in a batch do not matter, and never by a whole turn.
        other = wanted.roll(max(1, len(wanted) // 2), 0)
        chance = _scored(judged(readings, other), other != _nulls(), f"{about} against what others were made for")
    return Adherence(
        named=scored["named"],
        attributes={a.name: scored[a.name] for a in ATTRIBUTES if a.name in scored},
        by_count={
            value: _share(whole[of], f"all named attributes, {value} objects asked for") for value, of in counts.items()
        },
        binding=scored.get("binding"),
        chance=chance,
        reading_error=reading_error,
        samples=len(pictures),
    )


def reading_error(
    dataset: Dataset,
    *,
    count: int,
    seed: int,
    disturbances: Sequence[Disturbance] = DISTURBANCES,
) -> dict[str, Score]:
    """Measure what the reading gets wrong, on pictures of which the truth is known.

    Args:
        dataset: of ``shapes``.
        count: how many of its first examples are read, for each disturbance.
        seed: of what is drawn to disturb them.
        disturbances: what is done to the pictures.

    Returns:
        By disturbance, the share of the examples of which not all attributes are read rightly.

    Raises:
        ValueError: if the data are not of ``shapes``, or there are too few.
    """
    require(1 <= count <= len(dataset), f"a count from 1 to {len(dataset)}, got {count}")
    wanted = _attributes_of(dataset, count)
    named = wanted != _nulls()
    pictures = to_uint8(dataset.gather(torch.arange(count))["x0"])
    found = {}
    for k, disturbance in enumerate(disturbances):
        right = judged(read(disturbance(pictures, seed_of("reading", seed, k))), wanted)
        wrong = (~right & named).any(1)
        found[str(disturbance)] = _share(wrong, f"real examples not read rightly, {disturbance}")
    return found


def judged(readings: Sequence[Reading], wanted: Tensor) -> Tensor:
    """Tell which attributes are found on pictures: ``(B, A)`` bool, of no meaning where none is wanted.

    Args:
        readings: of the pictures.
        wanted: ``(B, A)`` int64, those not named being ``Attribute.none``.

    Raises:
        ValueError: if shapes or values do not fit.
    """
    _check_wanted(wanted, len(readings))
    rows = [_judged(reading, row) for reading, row in zip(readings, wanted.numpy(), strict=True)]
    return torch.from_numpy(np.stack(rows))


def _judged(reading: Reading, row: NDArray[np.int64]) -> NDArray[np.bool_]:
    right = np.zeros(len(row), dtype=bool)
    right[COUNT] = len(reading.objects) - 1 == row[COUNT]
    right[BACKGROUND] = reading.background == row[BACKGROUND]
    if not reading.objects:
        return right
    hits = [_hits(reading.objects, row[list(columns)]) for columns in SLOT_COLUMNS]  # (n + 1, 4) each
    centre = torch.tensor([found.centre for found in reading.objects])
    related = np.zeros((len(hits[0]), len(hits[1])), dtype=bool)
    related[:-1, :-1] = (relation_of(centre[:, None], centre[None]) == row[RELATION]).numpy()
    agreed = hits[0].sum(1)[:, None] + hits[1].sum(1) + related
    # Nobody is matched twice; the last one, nobody, may be.
    np.fill_diagonal(agreed[:-1, :-1], -1)
    first, second = np.unravel_index(agreed.argmax(), agreed.shape)
    for columns, hit in zip(SLOT_COLUMNS, (hits[0][first], hits[1][second]), strict=True):
        right[list(columns)] = hit
    right[RELATION] = related[first, second]
    return right


def _hits(objects: Sequence[Found], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of colour, shape, size and cell each object has as wanted, and, last, those of no object: none."""
    missing = -1
    values = [
        [found.colour, missing if found.shape is None else found.shape, found.size, found.cell] for found in objects
    ]
    hits: NDArray[np.bool_] = np.array([*values, [missing] * len(wanted)]) == wanted
    return hits


def _scored(right: Tensor, named: Tensor, about: str) -> dict[str, Score]:
    """Return the scores of attributes by name, of all named (``named``), and of binding where it can be told."""
    some = named.any(1)
    scores = {"named": _share((right | ~named).all(1)[some], f"all named attributes, {about}")}
    for column, attribute in enumerate(ATTRIBUTES):
        of = named[:, column]
        if bool(of.any()):
            scores[attribute.name] = _share(right[of, column], f"{attribute.name}, {about}")
    slots = [list(columns) for columns in SLOT_COLUMNS]
    two = torch.stack([named[:, columns].any(1) for columns in slots]).all(0)
    if bool(two.any()):
        columns = slots[0] + slots[1]
        bound = (right | ~named)[:, columns].all(1)
        scores["binding"] = _share(bound[two], f"both objects with all their named attributes, {about}")
    return scores


def _attributes_of(dataset: Dataset, count: int) -> Tensor:
    require(
        readable(dataset.info.attributes),
        f"data of the set shapes, whose pictures can be read, got {dataset.info.name}",
    )
    return dataset.gather(torch.arange(count))["attributes"]


def _nulls() -> Tensor:
    return torch.tensor([attribute.none for attribute in ATTRIBUTES])


def _check_wanted(wanted: Tensor, count: int) -> None:
    expected = (count, len(ATTRIBUTES))
    require(
        wanted.shape == expected and not wanted.is_floating_point(),
        f"wanted attributes as whole numbers {expected}, got {wanted.dtype} {tuple(wanted.shape)}",
    )
    fits = bool(((wanted >= 0) & (wanted <= _nulls())).all())
    require(fits, f"each wanted attribute in [0, n], n of {_nulls().tolist()}, got others")


def _share(of: Tensor, note: str) -> Score:
    return proportion(int(of.sum()), len(of), note=note)
