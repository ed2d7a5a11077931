import pytest

from unfog.cli.conditions import Known, attributes_of, condition_of
from unfog.cli.errors import CommandError
from unfog.data.dataset import Attribute
from unfog.sampling.request import Condition

KNOWN = Known(("cat", "dog"), (Attribute("colour", ("red", "blue")), Attribute("size", ("small", "large"))))


def test_attributes_that_are_not_given_are_not_told() -> None:
    assert attributes_of(["size=large"], KNOWN) == (2, 1)
    assert attributes_of(["colour = red", "size=small"], KNOWN) == (0, 0)
    assert attributes_of([], KNOWN) is None


def test_a_condition_is_read_by_names() -> None:
    text = "{label: dog, attributes: {colour: blue}, scale: -1.5, region: [0, 0, 0.5, 1]}"
    assert condition_of(text, KNOWN, "--also") == Condition(1, (1, 2), -1.5, (0.0, 0.0, 0.5, 1.0))
    assert condition_of("{label: 0}", KNOWN, "--also") == Condition(0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("colour", "expected name=value, got 'colour'"),
        ("color=red", "no attribute 'color', only colour, size; did you mean colour?"),
        ("colour=bleu", "colour is one of red, blue, got 'bleu'; did you mean blue?"),
    ],
)
def test_a_wrong_attribute_is_refused_with_what_there_is(given: str, told: str) -> None:
    with pytest.raises(CommandError, match="--attribute") as caught:
        attributes_of([given], KNOWN)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cat", "expected a mapping such as"),
        ("{lable: cat}", "there is no 'lable', only label, attributes, scale, region; did you mean label?"),
        ("{label: cow}", "one of cat, dog"),
        ("{attributes: red}", "expected attributes as a mapping"),
        ("{label: cat, scale: much}", "expected a number for scale"),
        ("{label: cat, region: [0, 1]}", "expected a region [top, left, bottom, right]"),
        ("{label: cat, region: [0, 0, 0, 1]}", "a region (top, left, bottom, right)"),
    ],
)
def test_a_wrong_condition_is_refused_with_what_was_expected(given: str, told: str) -> None:
    with pytest.raises(CommandError) as caught:
        condition_of(given, KNOWN, "--also")
    assert told in str(caught.value)


def test_an_attribute_that_is_given_twice_is_refused() -> None:
    with pytest.raises(CommandError, match="--attribute: colour is given twice, red and blue"):
        attributes_of(["colour=red", "size=small", "colour=blue"], KNOWN)


def test_a_run_without_attributes_or_classes_is_told_none() -> None:
    with pytest.raises(CommandError, match="trained without attributes"):
        attributes_of(["colour=red"], Known((), ()))
    with pytest.raises(CommandError, match="trained without classes"):
        condition_of("{label: 1}", Known((), ()), "--negative")
