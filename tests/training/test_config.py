import pytest

from unfog.training.config import TrainConfig
from unfog.training.ema import Exponential, Power


def test_the_examples_of_a_run_are_counted_with_repetition() -> None:
    assert TrainConfig(steps=30, batch_size=128).total_examples == 3840


def test_a_number_among_the_averages_is_a_length() -> None:
    config = TrainConfig(steps=30, batch_size=128, ema=(0.05, Exponential(0.999)))
    assert config.averages == (Power(0.05), Exponential(0.999))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"micro_batch": 0}, "micro_batch from 1 to batch_size 8"),
        ({"micro_batch": 9}, "micro_batch from 1 to batch_size 8"),
        ({"seed": -1}, "a seed in"),
        ({"seed": 2**63}, "a seed in"),
        ({"ema": (0.05, 0.3)}, "sigma_rel in .*got 0.3"),
        ({"ema": (0.05, 0.05)}, "averages in ema that differ"),
        ({"ema": (0.05, Power(0.05))}, "averages in ema that differ"),
        ({"ema": (), "snapshot_every": 5}, "snapshot_every=None without a power average in ema, got 5"),
        ({"ema": (Exponential(),), "snapshot_every": 5}, "averages of other kinds cannot be formed from snapshots"),
        ({"snapshot_every": 0}, "snapshot_every of at least 1"),
    ],
)
def test_values_out_of_range_are_refused(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainConfig(**{"steps": 10, "batch_size": 8, **change})
