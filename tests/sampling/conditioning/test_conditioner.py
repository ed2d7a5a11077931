import math

import pytest
import torch

from unfog.diffusion.random import Rng
from unfog.sampling.conditioning.conditioner import Label, Unconditional


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
