import math

import pytest
import torch

from unfog.diffusion.random import Rng
from unfog.sampling.conditioning.conditioner import Attributes, Combined, Label, Unconditional, Vector


def test_the_null_label_is_the_one_past_the_last() -> None:
    assert Label(10).null(3)["label"].tolist() == [10, 10, 10]


def test_labels_are_dropped_with_the_given_probability() -> None:
    label = {"label": torch.arange(10).repeat(1000)}
    dropped = Label(10, dropout=0.3).drop(label, Rng.of(0, 10000))["label"]
    share = (dropped == 10).float().mean().item()
    # Four standard errors of a share of 10000.
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 10000)
    assert torch.equal(dropped[dropped != 10], label["label"][dropped != 10])


def test_a_drop_belongs_to_the_example() -> None:
    label, rng = {"label": torch.arange(64) % 10}, Rng.of(0, 64)
    whole = Label(10, 0.5).drop(label, rng)["label"]
    assert torch.equal(Label(10, 0.5).drop({"label": label["label"][5:20]}, rng[5:20])["label"], whole[5:20])


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, [3, 4]), (1.0, [10, 10])])
def test_dropout_of_0_keeps_all_and_of_1_none(dropout: float, expected: list[int]) -> None:
    assert Label(10, dropout).drop({"label": torch.tensor([3, 4])}, Rng.of(0, 2))["label"].tolist() == expected


def test_without_conditions_there_is_nothing_to_drop() -> None:
    assert Unconditional()({"x0": torch.zeros(1)}) == {}
    assert Unconditional().null(2) == {}
    assert Unconditional(0.5).drop({}, Rng.of(0, 2)) == {}


def test_missing_labels_and_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="values with a label"):
        Label(10)({"x0": torch.zeros(1)})
    with pytest.raises(ValueError, match="at least 1 class, not 0"):
        Label(0)
    with pytest.raises(ValueError, match=r"a dropout in \[0, 1\], not 1.5"):
        Label(10, 1.5)


@pytest.mark.parametrize(
    ("labels", "told"), [([3, 10], r"\[10\]"), ([-1, 9], r"\[-1\]"), ([12, -2, 12], r"\[-2, 12\]")]
)
def test_labels_out_of_range_are_refused(labels: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=f"labels from 0 to 9, not {told}"):
        Label(10)({"label": torch.tensor(labels)})


def test_the_first_and_last_label_pass() -> None:
    label = torch.tensor([0, 9])
    assert Label(10)({"label": label})["label"] is label


def test_labels_of_another_device_are_not_read() -> None:
    # The meta device has nothing to be read.
    label = torch.zeros(3, dtype=torch.int64, device="meta")
    assert Label(10)({"label": label})["label"] is label


def test_some_examples_are_told_some_attributes_only() -> None:
    given = {"attributes": torch.tensor([[1, 2, 0]]).repeat(8000, 1)}
    conditioner = Attributes((3, 4, 5), dropout=0.0, each=0.4)
    dropped = conditioner.drop(given, Rng.of(0, 8000))["attributes"] == torch.tensor([3, 4, 5])
    # With a probability of its own that is uniform, an example loses each number of three attributes equally often.
    lost = torch.bincount(dropped.sum(1), minlength=4) / 8000
    for share, expected in zip(lost.tolist(), [0.6 + 0.1, 0.1, 0.1, 0.1], strict=True):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 8000)  # four standard errors


def test_the_null_of_attributes_is_none_of_their_values() -> None:
    assert Attributes((3, 4)).null(2)["attributes"].tolist() == [[3, 4], [3, 4]]
    assert Attributes((3, 4), dropout=1.0).drop({"attributes": torch.tensor([[0, 0]])}, Rng.of(0, 1))[
        "attributes"
    ].tolist() == [[3, 4]]


def test_a_vector_of_zeros_is_not_the_null() -> None:
    conditioner = Vector(2, dropout=0.5)
    told = conditioner({"vector": torch.zeros(1, 2)})["vector"]
    assert not torch.equal(told, conditioner.null(1)["vector"])
    assert conditioner.length == told.shape[1] == 3


def test_conditions_are_dropped_apart_and_together() -> None:
    both = Combined([Label(10, 0.2), Attributes((5,), 0.3, each=0.0)], dropout=0.1)
    given = {"label": torch.zeros(8000, dtype=torch.int64), "attributes": torch.zeros(8000, 1, dtype=torch.int64)}
    dropped = both.drop(given, Rng.of(0, 8000))
    label, attribute = dropped["label"] == 10, dropped["attributes"][:, 0] == 5
    together = 0.1 + 0.9 * 0.2 * 0.3
    # Four standard errors of a share of 8000.
    for share, expected in ((label, 0.1 + 0.9 * 0.2), (attribute, 0.1 + 0.9 * 0.3), (label & attribute, together)):
        assert abs(share.float().mean().item() - expected) < 4 * math.sqrt(expected * (1 - expected) / 8000)


def test_what_is_dropped_of_several_conditions_belongs_to_the_example() -> None:
    both, rng = Combined([Label(10, 0.5), Attributes((5, 6), 0.1)], 0.1), Rng.of(0, 64)
    given = {"label": torch.arange(64) % 10, "attributes": torch.ones(64, 2, dtype=torch.int64)}
    whole = both.drop(given, rng)
    part = both.drop({name: value[5:20] for name, value in given.items()}, rng[5:20])
    assert all(torch.equal(part[name], whole[name][5:20]) for name in given)


def test_conditioners_of_one_condition_are_refused_together() -> None:
    with pytest.raises(ValueError, match="conditioners of different conditions"):
        Combined([Label(3), Label(4)])


@pytest.mark.parametrize("given", [[[0, 5]], [[-1, 0]], [[4, 0]]])
def test_attributes_out_of_range_are_refused(given: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"each attribute in \[0, n\] of \(3, 4\)"):
        Attributes((3, 4))({"attributes": torch.tensor(given)})
