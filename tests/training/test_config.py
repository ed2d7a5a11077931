import pytest

from unfog.training.config import TrainConfig


def test_the_examples_of_a_run_are_counted_with_repetition() -> None:
    assert TrainConfig(steps=30, batch_size=128).total_examples == 3840


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
        ({"ema": (0.05, 0.05)}, "lengths that differ"),
        ({"snapshot_every": 0}, "snapshot_every of at least 1"),
    ],
)
def test_values_out_of_range_are_refused(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainConfig(**{"steps": 10, "batch_size": 8, **change})
