"""Lists on the command line: values and numbers with commas between, and what values are called."""

import json
from typing import Any

from unfog.checkpoint import JSON
from unfog.cli.errors import CommandError, refusing
from unfog.recipe.errors import RecipeError
from unfog.recipe.kinds import names
from unfog.recipe.load import parse
from unfog.recipe.plain import decode, encode


def items_of(text: str, option: str) -> list[Any]:
    """Return what stands between the commas, of which a mapping may have its own.

    Raises:
        CommandError: if it is no list, or an empty one.
    """
    with refusing():
        items = parse(f"[{text}]", option)
    if not isinstance(items, list) or not items:
        raise CommandError(f"{option}: expected a list such as a,b,c, got {text!r}")
    return items


def values_of(kind_of: Any, text: str, option: str) -> list[tuple[Any, str]]:
    """Return the values of a list of names and mappings, each with its name, without repetitions.

    Args:
        kind_of: a key of ``kinds.KINDS``.
        text: the list.
        option: what is being set, for errors.

    Raises:
        CommandError: if there is no such value.
    """
    found: list[tuple[Any, str]] = []
    for item in items_of(text, option):
        with refusing():
            value = decode(kind_of, item, option)
        if value not in [other for other, _ in found]:
            found.append((value, name_of(value, kind_of)))
    return found


def counts_of(text: str, option: str) -> list[int]:
    """Return whole numbers of at least 1, without repetitions.

    Raises:
        CommandError: if they are something else.
    """
    items = items_of(text, option)
    for item in items:
        if not isinstance(item, int) or isinstance(item, bool) or item < 1:
            raise CommandError(f"{option}: expected whole numbers of at least 1 such as 4,6,8, got {item!r}")
    return list(dict.fromkeys(items))


def name_of(value: Any, kind_of: Any) -> str:
    """Return how a value is called in recipes: by a name, or as a mapping of a name and the settings that differ."""
    written = encode(value, kind_of)
    assert isinstance(written, dict)
    for name in names(kind_of):
        if _default(kind_of, name) == written:
            return name
    usual = _default(kind_of, str(written["kind"])) or {}
    given = {name: item for name, item in written.items() if name == "kind" or usual.get(name, ...) != item}
    told = (f"{name}: {item if name == 'kind' else json.dumps(item)}" for name, item in given.items())
    return "{" + ", ".join(told) + "}"


def _default(kind_of: Any, name: str) -> dict[str, JSON] | None:
    """Return what a name alone stands for, or None for a kind that has settings without defaults."""
    try:
        written = encode(decode(kind_of, name), kind_of)
    except RecipeError:
        return None
    return written if isinstance(written, dict) else None
