"""Recipes as YAML, and settings that override some of theirs.

YAML is read as its version 1.2 has it: ``2e-4`` is a number, and only ``true`` and ``false`` are flags.
"""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

from unfog.checkpoint import JSON
from unfog.recipe.errors import RecipeError, did_you_mean_path, shown
from unfog.recipe.kinds import KINDS
from unfog.recipe.plain import (
    children,
    decode,
    describe,
    encode,
    expand,
    fields_of,
    is_node,
    is_number,
    node_class,
    required,
    unknown,
)
from unfog.recipe.schema import Recipe

FROM_DATA = {
    "network.in_channels": "it comes from the data: set data.channels",
    "network.out_channels": "it comes from the data: set data.channels",
    "network.num_classes": "it comes from the data: set condition.classes to true or false",
    "network.classes": "they come from the data",
    "network.size": "it comes from the data: set data.size",
    "network.attributes": "they come from the data: set condition.attributes to true or false",
}
"""Settings that the data decide, and what to set instead."""


def dump(recipe: Recipe) -> str:
    """Return a recipe as YAML, every setting written out; ``load`` gives it back.

    Raises:
        TypeError: if the recipe holds a value of a class that ``kinds`` does not list.
    """
    return yaml.dump(encode(recipe, Recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def load(text: str) -> Recipe:
    """Return the recipe that a YAML text describes.

    Raises:
        RecipeError: if the text is no YAML, or describes no recipe.
    """
    recipe = decode(Recipe, parse(text))
    assert isinstance(recipe, Recipe)
    return recipe


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """Return a recipe with some settings replaced; the result is checked as a whole.

    Args:
        recipe: stays as it is.
        assignments: each ``path=value``, the value in YAML. A path to a node of a kind takes a name, which replaces
            the whole node: ``schedule=cosine``, then ``schedule.shift=...`` for settings of the new kind.

    Raises:
        RecipeError: says which path, what came, and what was perhaps meant.
    """
    tree = encode(recipe, Recipe)
    given: list[str] = []
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise RecipeError(assignment, f"expected path=value{did_you_mean_path(path, children(Recipe, tree))}")
        if path in given:
            raise RecipeError(path, "given twice")
        given.append(path)
        if path in FROM_DATA:
            raise RecipeError(path, FROM_DATA[path])
        _assign(tree, path, parse(text, path))
    try:
        result = decode(Recipe, tree)
    except RecipeError as error:
        raise _attributed(error, given) from error
    assert isinstance(result, Recipe)
    return result


def _attributed(error: RecipeError, given: Sequence[str]) -> RecipeError:
    """Name the override, where a node as a whole was refused and only one of its settings was overridden."""
    below = [path for path in given if path.startswith(f"{error.path}.") or not error.path]
    return RecipeError(below[0], error.problem) if len(below) == 1 and error.path not in given else error


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the paths of the settings in which two recipes differ."""
    found: list[str] = []

    def compare(one: JSON, two: JSON, path: str) -> None:
        if isinstance(one, dict) and isinstance(two, dict) and one.get("kind") == two.get("kind"):
            for name in {**one, **two}:
                compare(one.get(name), two.get(name), f"{path}.{name}" if path else name)
        elif one != two:
            found.append(path)

    compare(encode(old, Recipe), encode(new, Recipe), "")
    return found


def parse(text: str, path: str = "") -> Any:
    """Return what a YAML text says, in mappings, lists and scalars.

    Args:
        text: one document.
        path: where it stands, for errors.

    Raises:
        RecipeError: if it is no YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None and not path else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(
            path, f"expected YAML, got {shown(text)}: {where}{problem}; quote text that has : or # or {{"
        ) from None


def _assign(tree: Any, path: str, value: JSON) -> None:
    """Set a value inside a plain recipe, in place."""
    *parents, leaf = path.split(".")
    node, declared, here = tree, Recipe, ""
    for name in (*parents, leaf):
        kinds = fields_of(node_class(declared, node))
        at = f"{here}.{name}" if here else name
        if name == "kind" and name == leaf and "kind" in node:
            node.clear()
            node.update(expand(declared, {"kind": value}, here))
            return
        if name not in kinds:
            raise unknown(path, declared, node, children(Recipe, tree))
        if at == path:
            node[name] = _replacement(kinds[name], node.get(name), value, at)
            return
        declared, here = _node_type(kinds[name]), at
        if declared is None or is_number(declared, node.get(name)):
            raise RecipeError(path, f"{at} has no settings of its own; expected {at}=, {describe(kinds[name])}")
        if node.get(name) is None and declared not in KINDS:
            node[name] = {}  # one kind only: what is not set is as usual
        if node.get(name) is None:
            raise RecipeError(path, f"{at} is not chosen yet; give {at}=, {describe(kinds[name])}, before it")
        node[name] = expand(declared, node[name], at)
        node = node[name]


def _replacement(declared: Any, old: JSON, new: JSON, path: str) -> JSON:
    """Return what a node becomes: the new value, with what only the data can say."""
    declared = _node_type(declared)
    if declared is None or new is None or is_number(declared, new):
        return new
    node = expand(declared, new, path)
    kept = [name.rpartition(".")[2] for name in FROM_DATA if name.rpartition(".")[0] == path]
    for name in kept:
        if name in node:
            raise RecipeError(f"{path}.{name}", FROM_DATA[f"{path}.{name}"])
    known = fields_of(node_class(declared, node))
    needed = [name for name in kept if name in known]
    if isinstance(old, dict) and (missing := [name for name in needed if name not in old]):
        raise RecipeError(
            path,
            f"{node['kind']} needs {', '.join(missing)}, which the data decide: begin from a recipe with one",
        )
    return {**node, **{name: old[name] for name in needed if isinstance(old, dict)}}


def _node_type(declared: Any) -> Any:
    """Return the type of a node, without its None, or None for a scalar."""
    kind_of = required(declared)
    return kind_of if is_node(kind_of) else None


_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_RESOLVED = {
    "tag:yaml.org,2002:null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "tag:yaml.org,2002:int": (re.compile(rf"(?:{_INT.pattern})\Z"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (re.compile(rf"(?:{_FLOAT.pattern})\Z"), list("-+.0123456789")),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    result: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"expected names, got {key!r}", key_node.start_mark)
        if key in result:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


for _class in (_Loader, _Dumper):
    for _tag, (_pattern, _first) in _RESOLVED.items():
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))
