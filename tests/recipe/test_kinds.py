import dataclasses
from typing import Any, get_args

import pytest

from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.schedule import Schedule, Tabulated
from unfog.diffusion.times import Stratified, Times, Uniform
from unfog.diffusion.weighting import Weight
from unfog.recipe.kinds import KINDS, SHORTHANDS, TABLES, Table, names
from unfog.recipe.plain import decode, encode, expand
from unfog.sampling.grid import TimeGrid
from unfog.sampling.sampler import Sampler, TableSampler
from unfog.training.ema import Average, Power
from unfog.training.optim import Decay, InverseSqrt

OPEN = (Schedule, Parameterization, Times, Weight, Sampler, TimeGrid, Decay, float | Average)
NEEDED: dict[type, dict[str, Any]] = {
    Stratified: {"density": Uniform()},
    Tabulated: {"alphas_cumprod": (0.9, 0.1)},
    InverseSqrt: {"reference": 1000},
    Power: {"sigma_rel": 0.05},
}


def leaves(cls: type) -> set[type]:
    below = {leaf for child in cls.__subclasses__() for leaf in leaves(child)}
    own = {cls} if dataclasses.is_dataclass(cls) and cls.__module__.startswith("unfog.") else set()
    return own | below


@pytest.mark.parametrize("kind_of", OPEN)
def test_every_class_of_an_open_type_has_one_name(kind_of: Any) -> None:
    listed = [cls for cls in KINDS[kind_of].values() if not issubclass(cls, Table)]
    (interface,) = {kind_of, *get_args(kind_of)} - {float, float | Average}
    assert set(listed) == leaves(interface) - {interface, TableSampler}
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    ("kind_of", "cls"), [(kind_of, cls) for kind_of in OPEN for cls in KINDS[kind_of].values() if cls not in TABLES]
)
def test_a_value_of_every_kind_is_written_and_read_back(kind_of: Any, cls: Any) -> None:
    value = cls(**NEEDED.get(cls, {}))
    plain = encode(value, kind_of)
    assert isinstance(plain, dict)
    assert cls is KINDS[kind_of][str(plain["kind"])]
    assert decode(kind_of, plain) == value


@pytest.mark.parametrize(("kind_of", "name"), [(kind_of, name) for kind_of in KINDS for name in names(kind_of)])
def test_names_are_unique_within_a_type_and_written_alike(kind_of: Any, name: str) -> None:
    assert names(kind_of).count(name) == 1
    assert name == name.lower().replace("-", "_")


@pytest.mark.parametrize("name", [name for shorthands in SHORTHANDS.values() for name in shorthands])
def test_a_shorthand_may_be_refined(name: str) -> None:
    plain = expand(Sampler, {"kind": name, "order": 3}, "")
    assert plain["order"] == 3
    assert plain["kind"] in KINDS[Sampler]
