"""Key maps: which tensors of a published file are which of our networks.

A map is data: entries that tie names of ours to names of the file, each with the form in which the file keeps them.
A form goes both ways, so that what a file should hold, name by name and shape by shape, is computed from our network
on the meta device and compared with what it does hold before a single number is read.

Everything is strict: each tensor of the file is used exactly once, each of ours is filled, all shapes agree, and what
a file repeats or could be computed must be what it should be.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

SHOWN = 5
"""Most names that an error lists of a kind."""

Shapes = Mapping[str, tuple[int, ...]]


class KeyMapError(ValueError):
    """A file whose tensors are not those of the network."""


@dataclass(frozen=True)
class Form:
    """How a file keeps tensors of ours.

    Attributes:
        to_theirs: from ours, in the entry's order, to the file's.
        to_ours: from the file's to ours; raises ``ValueError`` for numbers that cannot be.
    """

    to_theirs: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    to_ours: Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Entry:
    """One correspondence.

    Attributes:
        ours: names in our network's ``state_dict``; none for tensors of the file that ours does without.
        theirs: names in the file.
        form: how the file keeps them.
        unused: why the file's tensors are left out, for people; empty where they are used.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form
    unused: str = ""


KeyMap = tuple[Entry, ...]


def _one(change: Callable[[Tensor], Tensor]) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    def each(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [change(tensor) for tensor in tensors]

    return each


def as_it_is() -> Form:
    """Return the form of a tensor that the file keeps as we do."""
    return Form(list, list)


def pointwise(axes: int) -> Form:
    """Return the form of a matrix that the file keeps as a convolution of one point: (O, I) as (O, I, 1, ...).

    Args:
        axes: of the convolution, at least 1.
    """
    return Form(_one(partial(_with_ones, axes=axes)), _one(partial(_without_ones, axes=axes)))


def stacked(parts: int, axes: int = 0) -> Form:
    """Return the form of a tensor whose first axis the file keeps in equal parts, such as queries, keys and values.

    Args:
        parts: how many.
        axes: those of a convolution of one point, if the file keeps matrices as such.
    """

    def to_theirs(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [_with_ones(part, axes) for part in tensors[0].chunk(parts)]

    def to_ours(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat([_without_ones(part, axes) for part in tensors])]

    return Form(to_theirs, to_ours)


def by_head(heads: int, axes: int = 0) -> Form:
    """Return the form of queries, keys and values that the file keeps head by head.

    Its rows are those of head 0's queries, keys and values, then of head 1's; ours are all queries, all keys, all
    values, each head by head.

    Args:
        heads: how many.
        axes: those of a convolution of one point, if the file keeps the matrix as such.
    """

    def to_theirs(tensor: Tensor) -> Tensor:
        return _with_ones(torch.unflatten(tensor, 0, (3, heads, -1)).transpose(0, 1).flatten(0, 2), axes)

    def to_ours(tensor: Tensor) -> Tensor:
        return torch.unflatten(_without_ones(tensor, axes), 0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    return Form(_one(to_theirs), _one(to_ours))


def innermost(axes: int = 0) -> Form:
    """Return the form of queries, keys and values that the file keeps feature by feature, three rows each.

    Args:
        axes: those of a convolution of one point, if the file keeps the matrix as such.
    """

    def to_theirs(tensor: Tensor) -> Tensor:
        return _with_ones(torch.unflatten(tensor, 0, (3, -1)).transpose(0, 1).flatten(0, 1), axes)

    def to_ours(tensor: Tensor) -> Tensor:
        return torch.unflatten(_without_ones(tensor, axes), 0, (-1, 3)).transpose(0, 1).flatten(0, 1)

    return Form(_one(to_theirs), _one(to_ours))


def halves_swapped(axis: int) -> Form:
    """Return the form of a tensor whose halves the file keeps in the other order, such as cosines and sines."""
    swap = _one(lambda tensor: tensor.roll(tensor.shape[axis] // 2, axis))
    return Form(swap, swap)


def one_hot_layer(scaled: bool, swapped: bool) -> Form:
    """Return the form of a table of classes that the file keeps as a layer on one-hot vectors, with a bias.

    A row is the layer's answer to its class, and the null that to a vector of zeros: the bias.

    Args:
        scaled: whether the vectors have the length sqrt(classes) instead of 1.
        swapped: whether the halves of its features are in the other order.
    """

    def to_theirs(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        table = _swapped(tensors[0]) if swapped else tensors[0]
        return [((table[:-1] - table[-1]) / _length(len(table) - 1)).T, table[-1]]

    def to_ours(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        weight, bias = tensors
        table = torch.cat([weight.T * _length(weight.shape[1]) + bias, bias[None]])
        return [_swapped(table) if swapped else table]

    def _length(classes: int) -> float:
        return math.sqrt(classes) if scaled else 1.0

    return Form(to_theirs, to_ours)


def _swapped(table: Tensor) -> Tensor:
    return table.roll(table.shape[1] // 2, 1)


def copies(count: int) -> Form:
    """Return the form of a tensor that the file repeats; all copies must be equal."""

    def to_ours(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for k, tensor in enumerate(tensors):
            if not torch.equal(tensor, tensors[0]):
                raise ValueError(f"copy {k} differs from the first; one tensor should stand in all of these places")
        return tensors[:1]

    return Form(lambda tensors: [tensors[0]] * count, to_ours)


def without_null(*, turned: bool = False) -> Form:
    """Return the form of a table of classes that lacks our last row, the null, which becomes 0.

    Args:
        turned: whether the file keeps classes as columns.
    """

    def to_theirs(table: Tensor) -> Tensor:
        return table[:-1].T if turned else table[:-1]

    def to_ours(table: Tensor) -> Tensor:
        rows = table.T if turned else table
        return torch.cat([rows, torch.zeros_like(rows[:1])])

    return Form(_one(to_theirs), _one(to_ours))


def as_bits() -> Form:
    """Return the form of float32 numbers that we keep as their bits, int32."""
    return Form(_one(lambda bits: bits.view(torch.float32)), _one(lambda numbers: numbers.view(torch.int32)))


def computed(value: Tensor, tolerance: float) -> Form:
    """Return the form of a tensor that the file keeps and we compute; it must be what we compute.

    Args:
        value: what it should be.
        tolerance: largest absolute difference, for the rounding of whoever computed it.
    """

    def to_ours(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        worst = (tensors[0] - value).abs().max().item()
        if not worst <= tolerance:
            raise ValueError(f"it differs from what is computed here by {worst:.3g}; it should be a constant")
        return []

    return Form(lambda _: [value], to_ours)


def left_out(shape: tuple[int, ...]) -> Form:
    """Return the form of a tensor that the file has and we do without; 0 where a file is written."""
    return Form(lambda _: [torch.zeros(shape)], lambda _: [])


def _with_ones(tensor: Tensor, axes: int) -> Tensor:
    """Add axes of length 1 to a matrix; biases are left as they are."""
    return tensor if tensor.ndim < 2 else tensor.reshape(*tensor.shape, *[1] * axes)


def _without_ones(tensor: Tensor, axes: int) -> Tensor:
    return tensor if tensor.ndim < 2 else tensor.reshape(tensor.shape[: tensor.ndim - axes])


def entry(ours: str, theirs: str | Sequence[str], form: Form | None = None) -> Entry:
    """Return the entry of one tensor of ours."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    return Entry((ours,), names, form or as_it_is())


def layer(ours: str, theirs: str | Sequence[str], form: Form | None = None) -> list[Entry]:
    """Return the entries of a layer's weight and bias, which have the same form."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    return [entry(f"{ours}.{part}", [f"{name}.{part}" for name in names], form) for part in ("weight", "bias")]


def published_shapes(keymap: KeyMap, ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return what a file of this map holds, name by name.

    Args:
        keymap: the map.
        ours: ``state_dict`` of our network; meta tensors will do.

    Raises:
        ValueError: if the map does not cover the network, which is a fault of the map.
    """
    return {name: tuple(tensor.shape) for name, tensor in to_published(keymap, ours).items()}


def to_published(keymap: KeyMap, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of our network under the names and in the forms of the file.

    Raises:
        ValueError: if the map does not cover the network.
    """
    _require_cover(keymap, ours)
    made: dict[str, Tensor] = {}
    for item in keymap:
        made.update(zip(item.theirs, item.form.to_theirs([ours[name] for name in item.ours]), strict=True))
    return made


def from_published(keymap: KeyMap, found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file under our names and in our forms, in our dtypes.

    Args:
        keymap: the map.
        found: tensors of the file, by name.
        ours: ``state_dict`` of our network; meta tensors will do.

    Raises:
        KeyMapError: if names or shapes are not those of the map, or numbers are not what they must be.
        ValueError: if the map does not cover the network.
    """
    problems = differences(published_shapes(keymap, ours), {name: tuple(t.shape) for name, t in found.items()})
    if problems:
        raise KeyMapError("; ".join(problems))
    made: dict[str, Tensor] = {}
    for item in keymap:
        try:
            tensors = item.form.to_ours([_number(name, found[name]) for name in item.theirs])
        except ValueError as error:
            raise KeyMapError(f"{item.theirs[0]}: {error}") from error
        for name, tensor in zip(item.ours, tensors, strict=True):
            made[name] = tensor.to(ours[name].dtype).contiguous()
    return made


def differences(expected: Shapes, found: Shapes) -> list[str]:
    """Say in what two sets of named shapes differ; each kind of difference is one sentence with its first names."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [f"{len(names)} {what}: {_listed(names)}" for what, names in kinds if names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _number(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of a file in float32, in which all weights here are kept."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype}; expected floating-point numbers")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return tensor.float()


def _require_cover(keymap: KeyMap, ours: Mapping[str, Tensor]) -> None:
    filled = Counter(name for item in keymap for name in item.ours)
    used = Counter(name for item in keymap for name in item.theirs)
    wrong = sorted(filled.keys() ^ ours.keys()) + [name for name, n in [*filled.items(), *used.items()] if n > 1]
    if wrong:
        raise ValueError(f"expected a key map that has each tensor once, which is not so of {_listed(wrong)}")
