from pathlib import Path

import pytest
from benchmarks.bench import page
from benchmarks.bench.measure import Comparison, Operator, Profile, Quantity, Section, Share, Unit
from benchmarks.bench.record import QUICK, Record, load_all, save
from benchmarks.pages import END, start


def comparison(ours: float, goal: float | None = 2.0) -> Comparison:
    return Comparison("loop", "Unfog", "peer", Unit.MICROSECONDS_A_STEP, (ours,) * 6, (100.0,) * 6, goal)


def record(began: str = "2026-01-02T03:04:05+00:00", *, quick: bool = False, **sections: Section) -> Record:
    return Record(began, quick, 6, {"processor": "abacus"}, dict.fromkeys(sections, 60.0), sections)


WHOLE = Section(
    (comparison(40.0),),
    (Share("forward", (50.0,) * 6, (100.0,) * 6, 0.65),),
    (Quantity("matrix product", "GFLOP/s", (123.0,)),),
    (Profile("a step", 200.0, (Operator("aten::conv", 3, 150.0),)),),
    ("One condition.",),
)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    save(record(host=WHOLE), tmp_path)
    assert load_all(tmp_path) == [record(host=WHOLE)]


def test_quick_runs_are_overwritten_and_never_rendered(tmp_path: Path) -> None:
    paths = {save(record(f"2026-01-0{day}T00:00:00+00:00", quick=True, host=WHOLE), tmp_path) for day in (1, 2)}
    assert paths == {tmp_path / QUICK}
    assert load_all(tmp_path) == []


def test_records_come_oldest_first(tmp_path: Path) -> None:
    for day in (3, 1, 2):
        save(record(f"2026-01-0{day}T00:00:00+00:00", host=WHOLE), tmp_path)
    assert [found.began[9] for found in load_all(tmp_path)] == ["1", "2", "3"]


def test_the_page_shows_every_kind_of_finding() -> None:
    text = "\n".join(page.render([record(host=WHOLE)]))
    for part in (
        "| loop | Unfog | peer | 40 µs a step | 100 µs a step | **2.50 [2.50, 2.50]** |",
        "| forward | 50 | 100 | **50 % [50, 50]** |",
        "| matrix product | 123.0 GFLOP/s |",
        "| `aten::conv` | 3 | 150.0 | 75.0% |",
        "One condition.",
        "| processor | abacus |",
    ):
        assert part in text


@pytest.mark.parametrize(("ours", "said"), [(40.0, "reached"), (60.0, "not reached")])
def test_the_page_says_of_each_goal_whether_it_is_reached(ours: float, said: str) -> None:
    goals = page.goals_table([Section((comparison(ours),))])
    assert goals[-1].endswith(f"| {said} |")


def test_what_has_no_goal_is_not_judged() -> None:
    assert len(page.goals_table([Section((comparison(40.0, goal=None),))])) == 2


def test_each_section_comes_from_the_newest_record_that_holds_it() -> None:
    old = record("2026-01-01T00:00:00+00:00", host=Section((comparison(10.0),)), memory=Section((comparison(20.0),)))
    new = record("2026-02-01T00:00:00+00:00", host=Section((comparison(50.0),)))
    text = "\n".join(page.render([old, new]))
    assert "50 µs a step" in text
    assert "20 µs a step" in text
    assert "10 µs a step" not in text


def test_without_a_record_there_is_no_page() -> None:
    with pytest.raises(ValueError, match="expected at least one record"):
        page.render([])


def test_the_projects_page_has_its_markers() -> None:
    text = page.PAGE.read_text()
    assert text.count(start(page.COMMAND)) == text.count(END) == 1
