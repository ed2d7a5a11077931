from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unfog.evaluation.families_table import COLUMNS, draw_curves, notes, rows

Record = dict[str, Any]


def score(value: float) -> Record:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 100}


def record(family: str = "gan", seed: int = 0, distance: float = 2.0, **changes: Any) -> Record:
    quality = {name: score(0.5) for name in ("precision", "recall", "density", "coverage")}
    made: Record = {
        "family": family,
        "seed": seed,
        "data": {"name": "toy/train", "count": 60, "fingerprint": "f"},
        "budget_seconds": 60.0,
        "steps": 100,
        "batch_size": 8,
        "parameters": 1000,
        "drawing_parameters": 600,
        "settings": {"model": "small"},
        "samples": 24,
        "stability": {"diverged": None, "skipped": 0, "explosions": {"model": 1, "critic": 2}},
        "curve": [{"seconds": s, "steps": s, "frechet": score(60 / s), **quality} for s in (6, 60)],
        "scores": {
            "features": {"name": "own"},
            "count": 24,
            "samples": {"frechet": score(distance), **quality},
            "floor": {"frechet": score(0.25), **quality},
            "accuracy": {"score": score(0.9), "yardstick": score(0.95)},
        },
        "accuracy": score(0.9),
        "spread": score(0.8),
        "bits": {"reason": "the family has no likelihood"},
        "speed": {"seconds_per_image": 0.004, "batch_size": 100, "evaluations": 1, "settings": "one evaluation"},
    }
    return {**made, **changes}


def cell(made: list[tuple[str, ...]], family: str, column: str) -> str:
    (row,) = [row for row in made if row[0] == family]
    return row[COLUMNS.index(column)]


def test_one_seed_is_told_with_its_interval() -> None:
    made = rows([record()])
    assert cell(made, "gan", "Fréchet distance") == "2.000 [1.900, 2.100]"
    assert cell(made, "gan", "ms an image") == "4"
    assert cell(made, "gan", "explosions") == "3"
    assert cell(made, "gan", "bits per dimension") == "–"
    assert all(len(row) == len(COLUMNS) for row in made)


def test_several_seeds_are_told_with_their_spread() -> None:
    made = rows([record(seed=0, distance=1.0), record(seed=1, distance=3.0)])
    assert cell(made, "gan", "Fréchet distance") == "2.000 ± 1.414"
    assert cell(made, "gan", "seeds") == "0, 1"


def test_real_images_stand_below_once_a_seed() -> None:
    made = rows([record("gan"), record("vae", bits={"score": score(3.0), "kind": "upper bound"})])
    assert [row[0] for row in made] == ["gan", "vae", "real images"]
    assert cell(made, "real images", "Fréchet distance") == "0.250 [0.150, 0.350]"
    assert cell(made, "real images", "accuracy score") == "0.950 [0.850, 1.050]"
    assert cell(made, "vae", "bits per dimension") == "3.000 [2.900, 3.100]"


def test_a_family_that_came_to_nothing_has_a_row_without_scores() -> None:
    nothing = dict.fromkeys(("scores", "accuracy", "spread", "bits", "speed"))
    lost = record("flow", stability={"diverged": "not finite", "skipped": 3, "explosions": {}}, curve=[], **nothing)
    made = rows([record(), lost])
    assert cell(made, "flow", "diverged") == "1 of 1"
    assert cell(made, "flow", "Fréchet distance") == "–"
    assert "flow, seed 0: not finite" in list(notes([record(), lost]))


def test_what_is_equal_and_what_not_is_told() -> None:
    told = list(notes([record("gan"), record("vae", parameters=1050)]))
    assert told[0].startswith("Equal for all: 60 s of training on toy/train (60 examples), batches of 8")
    assert "within 5.0 %" in told[0]
    assert "gan: model: small; samples: one evaluation, 100 at a time; no bits: the family has no likelihood." in told


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"budget_seconds": 30.0}, "time"),
        ({"batch_size": 16}, "batch"),
        ({"samples": 12}, "samples"),
        ({"data": {"name": "toy/train", "count": 60, "fingerprint": "g"}}, "data"),
    ],
)
def test_records_that_were_not_made_alike_are_refused(change: Record, what: str) -> None:
    with pytest.raises(ValueError, match=f"the same {what}"):
        rows([record("gan"), record("vae", **change)])


def test_curves_are_drawn(tmp_path: Path) -> None:
    draw_curves([record("gan"), record("vae"), record("vae", 1, curve=[])], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 3 * image.height / 2
