import pytest

from unfog.pipeline import SampleRequest


def test_parts_of_a_request_ask_for_the_same_samples() -> None:
    request = SampleRequest(5, [4, 3, 2, 1, 0], seed=9, first=10)
    parts = [request.part(0, 2), request.part(2, 5)]
    asked = [(part.first + k, part.label_of(k), part.seed) for part in parts for k in range(part.count)]
    assert asked == [(request.first + k, request.label_of(k), request.seed) for k in range(request.count)]


@pytest.mark.parametrize("labels", [3, None])
def test_a_part_keeps_the_label_of_all(labels: int | None) -> None:
    assert SampleRequest(5, labels).part(1, 3).labels == labels
