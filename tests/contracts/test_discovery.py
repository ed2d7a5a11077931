from collections.abc import Callable
from typing import Any


def test_every_component_has_a_representative(component: type, representatives_of: Callable[[type], list[Any]]) -> None:
    assert representatives_of(component), (
        f"{component.__module__}.{component.__qualname__} needs arguments, so the contracts cannot make one: add a "
        "line with some instances to `representatives` in tests/contracts/conftest.py"
    )


def test_the_representatives_of_a_class_are_of_that_class(
    component: type, representatives_of: Callable[[type], list[Any]]
) -> None:
    assert all(type(value) is component for value in representatives_of(component))
