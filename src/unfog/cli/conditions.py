"""What the command line says of conditions: classes and attributes by name, and mappings of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from unfog.checkpoint import JSON
from unfog.cli.errors import CommandError, refusing
from unfog.data.dataset import Attribute
from unfog.recipe.errors import did_you_mean
from unfog.recipe.load import parse
from unfog.sampling.request import Condition, Values


@dataclass(frozen=True)
class Known:
    """What a model can be told.

    Attributes:
        classes: names of the classes.
        attributes: names of the attributes and of their values.
    """

    classes: Sequence[str]
    attributes: Sequence[Attribute]


def label_number(label: str, classes: Sequence[str], option: str) -> int:
    """Return the number of a class; a name goes before a number.

    Raises:
        CommandError: if there is no such class.
    """
    if label in classes:
        return classes.index(label)
    if label.isdecimal() and int(label) < len(classes):
        return int(label)
    raise CommandError(
        f"{option}: expected a number from 0 to {len(classes) - 1}, one of {_listed(classes)}, or alone 'all' or "
        f"'none'; got {label!r}{did_you_mean(label, classes)}"
    )


def attributes_of(given: Sequence[str], known: Known) -> Values | None:
    """Return the values of all attributes, those that are not given being not told; None if none is given.

    Args:
        given: each ``name=value``.
        known: what the model can be told.

    Raises:
        CommandError: if there is no such attribute or value, or one is given twice.
    """
    pairs: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise CommandError(f"--attribute: expected name=value, got {text!r}")
        if name.strip() in pairs:
            raise CommandError(f"--attribute: {name.strip()} is given twice, {pairs[name.strip()]} and {value.strip()}")
        pairs[name.strip()] = value.strip()
    return _values(pairs, known, "--attribute")


def condition_of(text: str, known: Known, option: str) -> Condition:
    """Return the condition that a mapping in YAML describes: its label, attributes, scale and region.

    Raises:
        CommandError: if it is no such mapping, or the model cannot be told so.
    """
    with refusing():
        plain = parse(text, option)
    names = ("label", "attributes", "scale", "region")
    if not isinstance(plain, dict):
        raise CommandError(f"{option}: expected a mapping such as '{{label: 3, scale: 2}}', got {text!r}")
    for name in plain:
        if name not in names:
            hint = did_you_mean(str(name), names)
            raise CommandError(f"{option}: there is no {name!r}, only {', '.join(names)}{hint}")
    label, attributes = plain.get("label"), plain.get("attributes", {})
    if not isinstance(attributes, dict):
        raise CommandError(f"{option}: expected attributes as a mapping such as {{colour: red}}, got {attributes!r}")
    if label is not None and not known.classes:
        raise CommandError(f"{option}: the run was trained without classes; leave the label out")
    with refusing():
        return Condition(
            labels=None if label is None else label_number(str(label), known.classes, option),
            attributes=_values({str(k): str(v) for k, v in attributes.items()}, known, option),
            scale=_number(plain.get("scale", 1.0), option, "scale"),
            region=_region(plain.get("region"), option),
        )


def _values(pairs: dict[str, str], known: Known, option: str) -> Values | None:
    if not pairs:
        return None
    if not known.attributes:
        raise CommandError(f"{option}: the run was trained without attributes; leave them out")
    names = [attribute.name for attribute in known.attributes]
    for name in pairs:
        if name not in names:
            raise CommandError(f"{option}: no attribute {name!r}, only {_listed(names)}{did_you_mean(name, names)}")
    values = []
    for attribute in known.attributes:
        value = pairs.get(attribute.name)
        if value is not None and value not in attribute.values:
            hint = did_you_mean(value, attribute.values)
            raise CommandError(f"{option}: {attribute.name} is one of {_listed(attribute.values)}, got {value!r}{hint}")
        values.append(len(attribute.values) if value is None else attribute.values.index(value))
    return tuple(values)


def _number(value: JSON, option: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CommandError(f"{option}: expected a number for {name}, got {value!r}")
    return float(value)


def _region(value: JSON, option: str) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise CommandError(f"{option}: expected a region [top, left, bottom, right] in shares, got {value!r}")
    top, left, bottom, right = (_number(item, option, "region") for item in value)
    return top, left, bottom, right


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
