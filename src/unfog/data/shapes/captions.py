"""Captions of scenes: attributes to words in many ways, and back.

A caption names the number of objects and some of the other attributes. Its structure is one of three: one object, two
of which each is described, or a group of alike objects ("three red circles"). Each can be put in eight frames, and most
words have synonyms. ``attributes_in`` reads the attributes back, so that whether a caption is true of a picture can be
checked.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from unfog.data.shapes.scene import (
    ATTRIBUTES,
    BACKGROUND,
    RELATION,
    SLOT_COLUMNS,
    SLOTS,
    Scenes,
    attributes_of,
)
from unfog.diffusion.checks import require
from unfog.diffusion.random import Purpose, Rng

_COLOURS: Mapping[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
}
_SIZES: Mapping[str, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
_NOUNS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
}
_THINGS = (("shape", "shapes"), ("object", "objects"), ("figure", "figures"))
_GROUNDS: Mapping[str, tuple[str, ...]] = {"black": ("black",), "grey": ("grey", "gray"), "white": ("white",)}
_PLACES: Mapping[str, tuple[str, ...]] = {
    "top left": ("in the top left", "in the upper left corner"),
    "top": ("at the top", "in the top middle"),
    "top right": ("in the top right", "in the upper right corner"),
    "left": ("on the left", "at the left"),
    "centre": ("in the centre", "in the middle"),
    "right": ("on the right", "at the right"),
    "bottom left": ("in the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "in the bottom middle"),
    "bottom right": ("in the bottom right", "in the lower right corner"),
}
_RELATIONS: Mapping[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
    "above and left of": ("above and to the left of", "to the upper left of"),
    "above and right of": ("above and to the right of", "to the upper right of"),
    "below and left of": ("below and to the left of", "to the lower left of"),
    "below and right of": ("below and to the right of", "to the lower right of"),
}
_NUMBERS: Mapping[str, tuple[str, ...]] = {"2": ("two", "2"), "3": ("three", "3"), "4": ("four", "4")}
_ON = ("on a {} background", "against a {} background", "over a {} backdrop", "with a {} background")
_FRAMES = (
    "{what}{ground}",
    "a picture of {what}{ground}",
    "an image of {what}{ground}",
    "there {be} {what}{ground}",
    "this shows {what}{ground}",
    "one can see {what}{ground}",
    "a drawing that shows {what}{ground}",
    "{ground_first}{what}",
)
_PARTS = ("colour", "shape", "size", "cell")
_WORDS = 16  # choices made for one caption, at most

Picked = TypeVar("Picked")


def _reversed(words: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {word: name for name, found in words.items() for word in found}


def _either(words: Iterable[str]) -> str:
    """Return a pattern of any of some words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_COLOUR_OF, _SIZE_OF, _GROUND_OF = _reversed(_COLOURS), _reversed(_SIZES), _reversed(_GROUNDS)
_PLACE_OF, _RELATION_OF, _NUMBER_OF = _reversed(_PLACES), _reversed(_RELATIONS), _reversed(_NUMBERS)
_SHAPE_OF = {word: name for name, pairs in _NOUNS.items() for pair in pairs for word in pair}
_ANY_NOUN = [*_SHAPE_OF, *(word for pair in _THINGS for word in pair)]
_GROUND = re.compile(rf"\b(?:on|against|over|with) a ({_either(_GROUND_OF)}) (?:background|backdrop)\b,?")
_PHRASE = re.compile(
    rf"\b(?P<number>an?|{_either(_NUMBER_OF)})(?: (?P<size>{_either(_SIZE_OF)}))?"
    rf"(?: (?P<colour>{_either(_COLOUR_OF)}))? (?P<noun>{_either(_ANY_NOUN)})\b"
)
_OPENINGS = {
    frame.partition("{what}")[0].format(be=be, ground_first="").strip() for frame in _FRAMES for be in ("is", "are")
}

Values = dict[str, str]
"""What is named, by the names of attributes and of their values."""


def captions_of(scenes: Scenes, naming: Rng, wording: Rng) -> list[str]:
    """Return a caption of each scene.

    Args:
        scenes: what is told of.
        naming: keys that decide which attributes are named.
        wording: keys that decide in which words.
    """
    named = some_of(scenes, naming).tolist()
    choices = wording.uniform((_WORDS,), Purpose.SCRATCH).tolist()
    return [put(row, chosen) for row, chosen in zip(named, choices, strict=True)]


def some_of(scenes: Scenes, keys: Rng) -> Tensor:
    """Return the attributes that captions of scenes name.

    The number of objects is always named, a colour or a shape in nine of ten captions, a size and the background in
    half; of a single object the cell in half; of two that differ the relation in half and both cells in a quarter.

    Returns:
        ``(B, A)`` int64, those not named being ``Attribute.none``.
    """
    found = attributes_of(scenes)
    u = keys.uniform((2 + SLOTS * 3,), Purpose.SCRATCH)
    none = torch.tensor([attribute.none for attribute in ATTRIBUTES])
    silent = torch.zeros_like(found, dtype=torch.bool)
    silent[:, BACKGROUND] = u[:, 0] < 0.5
    alike = (found[:, SLOT_COLUMNS[0][:3]] == found[:, SLOT_COLUMNS[1][:3]]).all(1)
    single = scenes.count == 1
    silent[:, RELATION] = alike | (u[:, 1] < 0.5)
    for slot, (colour, shape, size, cell) in enumerate(SLOT_COLUMNS):
        # The objects of a group are described together.
        mine = torch.where(alike[:, None], u[:, 2:5], u[:, 2 + 3 * slot : 5 + 3 * slot])
        silent[:, colour], silent[:, shape], silent[:, size] = mine[:, 0] < 0.1, mine[:, 1] < 0.1, mine[:, 2] < 0.5
        silent[:, cell] = torch.where(single, u[:, 1] < 0.5, alike | (u[:, 1] > 0.25))
    return torch.where(silent, none, found)


def put(named: Sequence[int], choices: Sequence[float]) -> str:
    """Put attributes into words.

    Args:
        named: one row in the order of ``ATTRIBUTES``, those that are not named being ``Attribute.none``. The number of
            objects must be named, and of groups neither cells nor the relation.
        choices: 16 numbers in [0, 1) that choose among frames and synonyms.

    Raises:
        ValueError: if the attributes do not go together in one caption.
    """
    require(len(named) == len(ATTRIBUTES), f"{len(ATTRIBUTES)} attributes, got {len(named)}")
    values = {a.name: a.values[value] for a, value in zip(ATTRIBUTES, named, strict=True) if value != a.none}
    require("count" in values, "a caption that names the number of objects, got none")
    take = iter(choices)
    frame, on = _pick(_FRAMES, take), _pick(_ON, take)
    ground = on.format(_pick(_GROUNDS[values["background"]], take)) if "background" in values else ""
    what = _subject(values, take)
    return frame.format(
        what=what,
        be="is" if what.startswith(("a ", "an ")) else "are",
        ground=ground and f" {ground}",
        ground_first=ground and f"{ground}, ",
    )


def _subject(values: Values, take: Iterator[float]) -> str:
    """Return the objects in words."""
    first, second = ({part: values[f"{part} {n}"] for part in _PARTS if f"{part} {n}" in values} for n in (1, 2))
    count, relation = values["count"], values.get("relation")
    if count == "1":
        require(not second and relation is None, "one object where count is 1, got attributes of a second one")
        return _described(first, take)
    if first == second and "cell" not in first and relation is None:
        return f"{_pick(_NUMBERS[count], take)} {_noun_phrase(first, take, plural=True)}"
    require(count == "2", f"a group of {count} alike objects, without cells and relation, got {values}")
    link = "and" if relation is None else _pick(_RELATIONS[relation], take)
    return f"{_described(first, take)} {link} {_described(second, take)}"


def _described(part: Values, take: Iterator[float]) -> str:
    phrase = _noun_phrase(part, take, plural=False)
    place = f" {_pick(_PLACES[part['cell']], take)}" if "cell" in part else ""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}{place}"


def _noun_phrase(part: Values, take: Iterator[float], *, plural: bool) -> str:
    words = [_pick(_SIZES[part["size"]], take)] if "size" in part else []
    words += [_pick(_COLOURS[part["colour"]], take)] if "colour" in part else []
    noun = _pick(_NOUNS[part["shape"]] if "shape" in part else _THINGS, take)
    return " ".join([*words, noun[plural]])


def _pick(options: Sequence[Picked], take: Iterator[float]) -> Picked:
    return options[min(int(next(take) * len(options)), len(options) - 1)]


def attributes_in(caption: str) -> list[int]:
    """Read the attributes that a caption names.

    Args:
        caption: text as ``put`` makes it; capitals and a full stop at the end do not matter.

    Returns:
        One row in the order of ``ATTRIBUTES``, those not named being ``Attribute.none``.

    Raises:
        ValueError: if the text is no caption of shapes.
    """
    text, values = caption.lower().strip().removesuffix("."), Values()
    if ground := _GROUND.search(text):
        values["background"] = _GROUND_OF[ground[1]]
        text = text[: ground.start()] + text[ground.end() :]
    phrases = list(_PHRASE.finditer(text))
    require(1 <= len(phrases) <= SLOTS, f"one or two descriptions of shapes in a caption, got {caption!r}")
    opening = text[: phrases[0].start()].strip()
    require(opening in _OPENINGS, f"a caption that begins like those of shapes, not by {opening!r}")
    # What follows each description: its place, and after the first of two the link to the second.
    ends = [phrase.start() for phrase in phrases[1:]] + [len(text)]
    after = [text[phrase.end() : end].strip() for phrase, end in zip(phrases, ends, strict=True)]
    parts = [_named_in(phrase) for phrase in phrases]
    group = _NUMBER_OF.get(phrases[0]["number"])
    if len(phrases) == SLOTS:
        after[0], relation = _linked(after[0], caption)
        values.update(relation)
    for part, place in zip(parts, after, strict=True):
        if place:
            require(group is None and place in _PLACE_OF, f"a place such as 'on the left', not {place!r}: {caption!r}")
            part["cell"] = _PLACE_OF[place]
    if group is not None:
        require(len(phrases) == 1, f"a group on its own, got {caption!r}")
        parts *= SLOTS
    values["count"] = group or str(len(phrases))
    values.update({f"{name} {slot}": value for slot, part in enumerate(parts, 1) for name, value in part.items()})
    return [a.values.index(values[a.name]) if a.name in values else a.none for a in ATTRIBUTES]


def _named_in(phrase: re.Match[str]) -> Values:
    """Return what one description names."""
    words = {"colour": _COLOUR_OF, "shape": _SHAPE_OF, "size": _SIZE_OF}
    found = {"colour": phrase["colour"], "shape": phrase["noun"], "size": phrase["size"]}
    return {name: words[name][word] for name, word in found.items() if word in words[name]}


def _linked(between: str, caption: str) -> tuple[str, Values]:
    """Return the place of the first object, and the relation, that stand between two descriptions."""
    for words in sorted(_RELATION_OF, key=len, reverse=True):
        if between == words or between.endswith(f" {words}"):
            return between.removesuffix(words).strip(), {"relation": _RELATION_OF[words]}
    require(between == "and" or between.endswith(" and"), f"'and' or a relation between two objects, got {caption!r}")
    return between.removesuffix("and").strip(), {}
