import pytest

from unfog.checkpoint import JSON
from unfog.training.settings import require_same_settings

SAVED: dict[str, JSON] = {"schedule": {"kind": "cosine", "shift": 1.0}, "train": {"lr": 0.1, "ema": [0.05, 0.1]}}


def test_the_same_settings_are_accepted() -> None:
    require_same_settings(
        SAVED, {"train": {"ema": [0.05, 0.1], "lr": 0.1}, "schedule": {"shift": 1.0, "kind": "cosine"}}
    )


def test_a_checkpoint_that_tells_of_none_is_accepted() -> None:
    require_same_settings(None, SAVED)


def test_every_setting_that_differs_is_listed_with_both_values() -> None:
    given: dict[str, JSON] = {"schedule": {"kind": "edm", "shift": 1.0}, "train": {"lr": 0.1, "ema": [0.05]}}
    with pytest.raises(ValueError, match="of a run with other settings") as caught:
        require_same_settings(SAVED, given)
    assert str(caught.value).splitlines()[1:] == [
        "  schedule.kind: 'cosine' there, 'edm' here",
        "  train.ema: [0.05, 0.1] there, [0.05] here",
    ]


def test_settings_that_one_side_alone_knows_are_no_difference() -> None:
    require_same_settings(SAVED, {"schedule": {"kind": "cosine"}, "train": {"lr": 0.1, "new": 3}, "more": {}})
