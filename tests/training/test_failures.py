import json
import math
from pathlib import Path

from unfog.training.failures import Cause, Example, Failure, discard_failures_after, write_failures


def failure(step: int = 3, count: int = 1) -> Failure:
    examples = tuple(Example(10 + k, 2, {"t": 0.25, "log_snr": -1.5, "loss": math.inf}) for k in range(count))
    return Failure(step, "model", math.nan, -math.inf, Cause.LOSS, None, "it overflowed", examples)


def test_a_failure_is_one_sentence() -> None:
    assert str(failure()) == (
        "loss nan, gradient norm -inf of 'model' in step 3: it overflowed; example 10 (t 0.25, log-SNR -1.5, loss inf)"
    )


def test_a_failure_that_concerns_no_single_example_names_none() -> None:
    assert str(failure(count=0)).endswith(": it overflowed")


def test_an_example_of_which_nothing_is_told_is_a_number() -> None:
    assert str(Example(7, 0, {})) == "7"


def test_many_examples_are_counted() -> None:
    assert "; examples 10 (" in str(failure(count=9))
    assert str(failure(count=9)).endswith(" and 5 more")


def test_what_is_written_is_plain_json_with_every_example(tmp_path: Path) -> None:
    path = write_failures(tmp_path, [failure(count=9), failure()])
    assert path == tmp_path / "failures" / "step-00000003.json"
    record = json.loads(path.read_text(), parse_constant=lambda text: 1 / 0)  # NaN is no JSON
    assert record["step"] == 3
    assert [len(one["examples"]) for one in record["failures"]] == [9, 1]
    first = record["failures"][0]
    assert (first["loss"], first["grad_norm"], first["cause"], first["module"]) == ("nan", "-inf", "loss", None)
    assert first["examples"][0] == {"id": 10, "epoch": 2, "t": 0.25, "log_snr": -1.5, "loss": "inf"}


def test_failures_of_later_steps_can_be_discarded(tmp_path: Path) -> None:
    for step in (3, 5, 8):
        write_failures(tmp_path, [failure(step)])
    (tmp_path / "failures" / "notes.txt").write_text("mine")
    discard_failures_after(tmp_path, 5)
    names = sorted(path.name for path in (tmp_path / "failures").iterdir())
    assert names == ["notes.txt", "step-00000003.json", "step-00000005.json"]


def test_a_folder_without_failures_has_none_to_discard(tmp_path: Path) -> None:
    discard_failures_after(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
