from pathlib import Path

import pytest

from unfog.training.log import LogWriter, read_log


def write(path: Path, steps: range, after_step: int = 0) -> None:
    with LogWriter(path, after_step=after_step) as log:
        for step in steps:
            log.write({"step": step, "loss": step / 3})
        log.sync()


def test_numbers_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", range(1, 4))
    assert read_log(tmp_path / "log.jsonl") == [{"step": step, "loss": step / 3} for step in (1, 2, 3)]


def test_reopening_drops_what_came_after_the_step(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", range(1, 8))
    write(tmp_path / "log.jsonl", range(5, 10), after_step=4)
    write(tmp_path / "plain.jsonl", range(1, 10))
    assert (tmp_path / "log.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_a_line_is_on_its_way_once_written(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log.jsonl") as log:
        log.write({"step": 1})
        assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("torn", ["{", '{"step": 4}', '{"step": 4, "loss": 0.'])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    write(path, range(1, 4))
    path.write_text(path.read_text() + torn)
    assert [record["step"] for record in read_log(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["not json", '{"loss": 1}', '{"step": "one"}', "3"])
def test_any_other_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match="line 2: expected a JSON object with a step"):
        read_log(path)


def test_an_empty_log_has_no_lines(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", range(0))
    assert read_log(tmp_path / "log.jsonl") == []


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log.jsonl") as log:
        log.write({"step": 1, "loss": float("nan"), "parts": {"a": float("inf")}, "several": [1.0, float("nan")]})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": None, "parts": {"a": None}, "several": [1.0, None]}]
