"""Trees of configuration as plain mappings, lists and scalars, and back, checked against the types of their fields."""

import dataclasses
import re
import types
from collections.abc import Iterator
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from unfog.checkpoint import JSON
from unfog.diffusion.schedule import Tabulated
from unfog.recipe.errors import RecipeError, did_you_mean, did_you_mean_path, shown
from unfog.recipe.kinds import KINDS, SHORTHANDS, Named, name_of, names


def encode(value: Any, declared: Any) -> JSON:
    """Return a value as mappings, lists and scalars; every field is written out.

    Args:
        value: of the declared type.
        declared: the type of the field that holds it: a dataclass, one of ``kinds.KINDS``, a scalar, or a tuple of
            any of these; each may be optional.

    Raises:
        TypeError: if a value is of a class that ``kinds`` does not list.
    """
    if value is None:
        return None
    kind_of = required(declared)
    element = _element(kind_of)
    if element is not None:
        return [encode(item, element) for item in value]
    if kind_of in KINDS and not is_number(kind_of, value):
        value = (name_of(value) if isinstance(value, Tabulated) else None) or value
        kinds = [name for name, cls in KINDS[kind_of].items() if cls is type(value)]
        if not kinds:
            raise TypeError(f"a {type(value).__name__} cannot be written: a recipe holds {', '.join(KINDS[kind_of])}")
        return {"kind": kinds[0], **_encoded_fields(value)}
    if dataclasses.is_dataclass(value):
        return _encoded_fields(value)
    if isinstance(value, Enum):
        return value.name.lower()
    plain: JSON = list(value) if isinstance(value, tuple) else value
    return plain


def decode(declared: Any, plain: JSON, path: str = "") -> Any:
    """Return the value that ``encode`` turned into plain data.

    Args:
        declared: as for ``encode``.
        plain: the data.
        path: where they stand, for errors.

    Raises:
        RecipeError: for unknown and missing names, wrong types, and values that a class refuses.
    """
    if plain is None and _optional(declared):
        return None
    kind_of = required(declared)
    element = _element(kind_of)
    if element is not None:
        if not isinstance(plain, list):
            raise RecipeError(path, f"expected {describe(declared)}, got {shown(plain)}")
        return tuple(decode(element, item, f"{path}[{place}]") for place, item in enumerate(plain))
    if not is_node(kind_of) or is_number(kind_of, plain):
        return _scalar(float if kind_of in KINDS else declared, plain, path)
    plain = expand(kind_of, plain, path)
    cls = node_class(kind_of, plain)
    known = fields_of(cls)
    for name in plain:
        if name not in known and (name != "kind" or kind_of not in KINDS):
            raise unknown(_joined(path, name), kind_of, plain, children(kind_of, plain, path))
    values = {name: decode(known[name], item, _joined(path, name)) for name, item in plain.items() if name != "kind"}
    for field in dataclasses.fields(cls):
        if field.name in known and field.name not in values and _has_no_default(field):
            raise RecipeError(_joined(path, field.name), f"missing; expected {describe(known[field.name])}")
    try:
        value = cls(**values)
        return value.schedule() if isinstance(value, Named) else value
    except ValueError as error:
        raise RecipeError(_blamed(str(error), path, children(kind_of, plain, path)), str(error)) from error


def expand(kind_of: Any, plain: JSON, path: str) -> dict[str, JSON]:
    """Return a node as a mapping: a bare name becomes ``{kind: name}``, a shorthand what it stands for.

    Raises:
        RecipeError: if it is neither a mapping nor a name, or there is no such name.
    """
    if kind_of not in KINDS:
        if not isinstance(plain, dict):
            parts = ", ".join(_joined(path, name) for name in list(fields_of(kind_of))[:3])
            raise RecipeError(path, f"expected settings of its own ({parts}, ...), got {shown(plain)}")
        return plain
    if isinstance(plain, str):
        plain = {"kind": plain}
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if not isinstance(plain, dict) or not isinstance(kind, str):
        raise RecipeError(path, f"expected {describe(kind_of)}, or a mapping with such a kind, got {shown(plain)}")
    name = kind.replace("-", "_").lower()
    if name not in names(kind_of):
        raise RecipeError(path, f"expected {describe(kind_of)}, got {kind!r}{did_you_mean(name, names(kind_of))}")
    return {**SHORTHANDS.get(kind_of, {}).get(name, {"kind": name}), **{k: v for k, v in plain.items() if k != "kind"}}


def node_class(kind_of: Any, plain: dict[str, JSON]) -> Any:
    """Return the dataclass that an expanded node stands for."""
    if kind_of not in KINDS:
        return kind_of
    return KINDS[kind_of][str(plain["kind"])]


@cache
def fields_of(cls: Any) -> dict[str, Any]:
    """Return the declared types of a dataclass's settings, by name."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def children(declared: Any, plain: JSON, path: str = "") -> Iterator[str]:
    """Yield the path of every setting below a node, as the kinds chosen there have them."""
    kind_of = required(declared)
    if not is_node(kind_of) or plain is None:
        return
    try:
        node = expand(kind_of, plain, path)
    except RecipeError:
        return
    for name, kind in fields_of(node_class(kind_of, node)).items():
        yield _joined(path, name)
        default: JSON = {} if required(kind) not in KINDS else None
        yield from children(kind, node.get(name, default), _joined(path, name))


def unknown(path: str, kind_of: Any, node: dict[str, JSON], known: Iterator[str]) -> RecipeError:
    """Return the error for a setting that does not exist.

    Args:
        path: the setting.
        kind_of: the type of the node that has no such setting.
        node: that node, expanded.
        known: paths among which the right one may be.
    """
    there = ""
    if kind_of in KINDS:
        settings = ", ".join(fields_of(node_class(kind_of, node)))
        there = f": {node['kind']} has {settings or 'none'}"
    return RecipeError(path, f"there is no such setting{there}{did_you_mean_path(path, known)}")


def describe(declared: Any) -> str:
    """Say what a field takes, for people."""
    kind_of, ending = required(declared), " or null" if _optional(declared) else ""
    if kind_of in KINDS:
        number = "a number, or " if float in get_args(kind_of) else ""
        return f"{number}one of {', '.join(names(kind_of))}{ending}"
    element = _element(kind_of)
    if element is not None:
        return f"a list, each of it {describe(element)}{ending}"
    if get_origin(kind_of) is tuple:
        inner = get_args(kind_of)
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"a list of {count}{_PLURALS.get(inner[0], 'values')}{ending}"
    if get_origin(kind_of) is types.UnionType:
        return f"{', or '.join(describe(part) for part in get_args(kind_of))}{ending}"
    if isinstance(kind_of, type) and issubclass(kind_of, Enum):
        return f"one of {', '.join(member.name.lower() for member in kind_of)}{ending}"
    return _NAMES.get(kind_of, "settings of its own") + ending


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers"}


def _scalar(declared: Any, plain: JSON, path: str) -> Any:
    kind_of = required(declared)
    if isinstance(kind_of, type) and issubclass(kind_of, Enum):
        members = {member.name.lower(): member for member in kind_of}
        name = plain.replace("-", "_").lower() if isinstance(plain, str) else ""
        if name not in members:
            hint = did_you_mean(name, members)
            raise RecipeError(path, f"expected {describe(declared)}, got {shown(plain)}{hint}")
        return members[name]
    try:
        return _adapter(declared).validate_python(tuple(plain) if isinstance(plain, list) else plain)
    except ValidationError as error:
        place = [part for part in error.errors()[0]["loc"] if isinstance(part, int)]
        where = f"[{place[0]}]" if place and isinstance(plain, list) and place[0] < len(plain) else ""
        raise RecipeError(path + where, f"expected {describe(declared)}, got {shown(plain)}") from None


@cache
def _adapter(declared: Any) -> TypeAdapter[Any]:
    return TypeAdapter(declared, config=ConfigDict(strict=True, allow_inf_nan=False))


def _encoded_fields(value: Any) -> dict[str, JSON]:
    cls: Any = type(value)
    return {name: encode(getattr(value, name), declared) for name, declared in fields_of(cls).items()}


def _blamed(message: str, path: str, known: Iterator[str]) -> str:
    """Return the path of the setting that a class's message names first, or that of the node."""
    skip = len(path) + 1 if path else 0
    mentions = []
    for setting in known:
        found = re.search(rf"(?<![\w.]){re.escape(setting[skip:])}(?!\w)", message)
        if found:
            mentions.append((found.start(), -len(setting), setting))
    return min(mentions)[2] if mentions else path


def required(declared: Any) -> Any:
    """Return the type of a field without its None."""
    if declared in KINDS or get_origin(declared) not in (Union, types.UnionType):
        return declared
    return reduce(or_, (part for part in get_args(declared) if part is not types.NoneType))


def _optional(declared: Any) -> bool:
    return declared not in KINDS and types.NoneType in get_args(declared)


def is_node(kind_of: Any) -> bool:
    """Tell whether values of a type have settings of their own."""
    return kind_of in KINDS or dataclasses.is_dataclass(kind_of)


def is_number(kind_of: Any, value: Any) -> bool:
    """Tell whether a value of one of ``kinds.KINDS`` is a number, where that may be."""
    return float in get_args(kind_of) and isinstance(value, int | float) and not isinstance(value, bool)


def _element(kind_of: Any) -> Any:
    """Return the type of the nodes in a tuple of any length of them, or None for everything else."""
    inner = get_args(kind_of) if get_origin(kind_of) is tuple else ()
    return inner[0] if inner[1:] == (Ellipsis,) and is_node(inner[0]) else None


def _has_no_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
