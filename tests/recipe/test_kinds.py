import dataclasses
from typing import Any, get_args

import pytest

from unfog.diffusion.coupling import Coupling
from unfog.diffusion.curves import Shifted, Spline
from unfog.diffusion.learned import Live
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.schedule import CleanEnd, RectifiedFlow, Schedule, Tabulated, cosine, scaled_linear
from unfog.diffusion.tables import zero_terminal
from unfog.diffusion.times import Curriculum, Importance, Stratified, Times, Uniform
from unfog.diffusion.weighting import Weight
from unfog.recipe.kinds import KINDS, SHORTHANDS, Named, names
from unfog.recipe.plain import decode, encode, expand
from unfog.sampling.fitted import Fitted, Given, Stage
from unfog.sampling.grid import TimeGrid
from unfog.sampling.guidance.bounds import Bounds
from unfog.sampling.sampler import Sampler, TableSampler
from unfog.tasks.hybrid import ReverseVariance
from unfog.training.ema import Average, Power
from unfog.training.optim import Decay, InverseSqrt

OPEN = (Schedule, Parameterization, Times, Weight, Coupling, ReverseVariance, Bounds)
OPEN += (Sampler, TimeGrid, Decay, float | Average)
NEEDED: dict[type, dict[str, Any]] = {
    Stratified: {"density": Uniform()},
    Curriculum: {"start": Uniform(), "end": Stratified(Uniform()), "examples": 1000},
    Importance: {"density": Uniform()},
    Tabulated: {"alphas_cumprod": (0.9, 0.1)},
    Spline: {"log_snr_max": 9.0, "log_snr_min": -4.0, "times": (0.0, 0.3, 1.0)},
    Shifted: {"schedule": RectifiedFlow(), "scale": 0.25},
    InverseSqrt: {"reference": 1000},
    Power: {"sigma_rel": 0.05},
    Given: {"given": (1.0, 0.4)},
    Fitted: {"schedule": RectifiedFlow(), "stages": (Stage(1.0, 0.9, (1.0,)), Stage(0.4, 0.4, (1.5, -0.5)))},
}


def leaves(cls: type) -> set[type]:
    below = {leaf for child in cls.__subclasses__() for leaf in leaves(child)}
    own = {cls} if dataclasses.is_dataclass(cls) and cls.__module__.startswith("unfog.") else set()
    return own | below


@pytest.mark.parametrize("kind_of", OPEN)
def test_every_class_of_an_open_type_has_one_name(kind_of: Any) -> None:
    listed = [cls for cls in KINDS[kind_of].values() if not issubclass(cls, Named)]
    (interface,) = {kind_of, *get_args(kind_of)} - {float, float | Average}
    assert set(listed) == leaves(interface) - {interface, TableSampler, Live}
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    ("kind_of", "cls"),
    [(kind_of, cls) for kind_of in OPEN for cls in KINDS[kind_of].values() if not issubclass(cls, Named)],
)
def test_a_value_of_every_kind_is_written_and_read_back(kind_of: Any, cls: Any) -> None:
    value = cls(**NEEDED.get(cls, {}))
    plain = encode(value, kind_of)
    assert isinstance(plain, dict)
    assert cls is KINDS[kind_of][str(plain["kind"])]
    assert decode(kind_of, plain) == value


@pytest.mark.parametrize(
    "name", ["linear_betas", "scaled_linear_betas", "cosine_betas", "quadratic_betas", "sigmoid_betas"]
)
def test_a_table_is_written_by_its_name(name: str) -> None:
    table = decode(Schedule, {"kind": name, "steps": 40, "clean": "first_level"})
    assert isinstance(table, Tabulated)
    assert encode(table, Schedule) == {"kind": name, "steps": 40, "clean": "first_level"}


@pytest.mark.parametrize("table", [scaled_linear(50, CleanEnd.FIRST_LEVEL), cosine(40)])
def test_a_rescaled_table_is_written_with_the_name_of_the_table(table: Tabulated) -> None:
    rescaled = zero_terminal(table)
    plain = encode(rescaled, Schedule)
    assert plain == {"kind": "zero_terminal", "table": encode(table, Schedule)}
    assert decode(Schedule, plain) == rescaled


def test_only_a_table_can_be_rescaled() -> None:
    with pytest.raises(ValueError, match="a table such as linear_betas, which RectifiedFlow is not"):
        decode(Schedule, {"kind": "zero_terminal", "table": "rectified_flow"})


@pytest.mark.parametrize(("kind_of", "name"), [(kind_of, name) for kind_of in KINDS for name in names(kind_of)])
def test_names_are_unique_within_a_type_and_written_alike(kind_of: Any, name: str) -> None:
    assert names(kind_of).count(name) == 1
    assert name == name.lower().replace("-", "_")


@pytest.mark.parametrize("name", [name for shorthands in SHORTHANDS.values() for name in shorthands])
def test_a_shorthand_may_be_refined(name: str) -> None:
    plain = expand(Sampler, {"kind": name, "order": 3}, "")
    assert plain["order"] == 3
    assert plain["kind"] in KINDS[Sampler]
