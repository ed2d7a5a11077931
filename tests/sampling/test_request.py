import pytest

from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.request import Condition, SampleRequest, SampleSettings


def test_parts_of_a_request_ask_for_the_same_samples() -> None:
    request = SampleRequest(5, [4, 3, 2, 1, 0], seed=9, first=10)
    parts = [request.part(0, 2), request.part(2, 5)]
    asked = [(part.first + k, part.label_of(k), part.seed) for part in parts for k in range(part.count)]
    assert asked == [(request.first + k, request.label_of(k), request.seed) for k in range(request.count)]


@pytest.mark.parametrize("labels", [3, None])
def test_a_part_keeps_the_label_of_all(labels: int | None) -> None:
    assert SampleRequest(5, labels).part(1, 3).labels == labels


def test_a_part_takes_its_share_of_every_condition() -> None:
    request = SampleRequest(
        4,
        [0, 1, 2, 3],
        attributes=((0, 1), (2, 3), (4, 5), (6, 7)),
        negative=Condition([3, 2, 1, 0]),
        also=(Condition(5, ((1,), (2,), (3,), (4,)), scale=0.5), Condition(7)),
    )
    part = request.part(1, 3)
    assert part.attributes == ((2, 3), (4, 5))
    assert part.negative == Condition((2, 1))
    assert part.also == (Condition(5, ((2,), (3,)), scale=0.5), Condition(7))
    assert part.condition.attributes_of(1) == request.condition.attributes_of(2) == (4, 5)


def test_attributes_of_all_are_those_of_each() -> None:
    assert SampleRequest(3, attributes=(1, 2)).part(1, 3).condition.attributes_of(1) == (1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [1]}, "2 labels, one a sample, got 1"),
        ({"attributes": ((1, 2), (3, 4), (5, 6))}, "attributes for each of 2 samples"),
        ({"negative": Condition([1, 2, 3])}, "2 labels, one a sample, got 3"),
        ({"negative": Condition(1, scale=2.0)}, "a negative condition without a scale"),
        ({"also": (Condition(scale=2.0),)}, "labels or attributes in each further condition"),
    ],
)
def test_conditions_for_another_number_of_samples_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleRequest(2, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("region", [(0, 0, 0, 1), (0, 0.5, 1, 0.5), (-0.1, 0, 1, 1), (0, 0, 1, 1.1)])
def test_a_region_lies_in_the_picture(region: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="a region"):
        Condition(1, region=region)


@pytest.mark.parametrize(
    "given",
    [{"guidance": float("nan")}, {"weak": float("inf")}, {"rescale": 1.5}, {"interval": (2.0, 1.0)}],
)
def test_settings_out_of_their_range_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SampleSettings(DDIM(), Trailing(), **given)  # type: ignore[arg-type]


def test_without_guidance_nothing_is_left_that_would_do_nothing() -> None:
    settings = SampleSettings(DDIM(), Trailing(), guidance=2.0, interval=(0.1, 1.0), rescale=0.5)
    assert settings.with_guidance(1.0) == SampleSettings(DDIM(), Trailing())
    assert settings.with_guidance(3.0).rescale == 0.5


def test_an_interval_makes_the_cost_a_bound() -> None:
    settings = SampleSettings(DDIM(), Trailing(), 10, guidance=2.0)
    assert settings.cost == "20 evaluations"
    limited = SampleSettings(DDIM(), Trailing(), 10, guidance=2.0, interval=(0.1, 1.0))
    assert limited.cost == "at most 20 evaluations"


def test_further_conditions_are_counted_in_the_cost() -> None:
    assert SampleSettings(DDIM(), Trailing(), 1).cost == "1 evaluation"
    settings = SampleSettings(DDIM(), Trailing(), 10, guidance=2.0)
    halves = (Condition(1, scale=1.0, region=(0, 0, 1, 0.5)), Condition(7, scale=2.0, region=(0, 0.5, 1, 1)))
    assert SampleRequest(1, 3).cost(settings) == "20 evaluations"
    assert SampleRequest(1, 3, also=(Condition(8),)).cost(settings) == "30 evaluations"
    assert SampleRequest(1, 3, also=(Condition(8, scale=-1.0),)).cost(settings) == "20 evaluations"
    assert SampleRequest(1, also=halves).cost(settings) == "30 evaluations"
    assert SampleRequest(1, also=(Condition(8),)).cost(SampleSettings(DDIM(), Trailing(), 1)) == "1 evaluation"
