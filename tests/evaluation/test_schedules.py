from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from unfog.diffusion.curves import Shifted, Sigmoid
from unfog.diffusion.schedule import Cosine, Schedule, VarianceExploding, linear
from unfog.diffusion.tables import zero_terminal
from unfog.evaluation.schedules import plot_schedules

SEVERAL: dict[str, Schedule] = {
    "cosine": Cosine(),
    "shifted": Shifted(Cosine(), 0.25),
    "sigmoid": Sigmoid(),
    "exploding": VarianceExploding(),
    "linear": linear(),
    "rescaled": zero_terminal(linear()),
}


def texts(path: Path) -> list[str]:
    return [text.strip() for text in ElementTree.parse(path).getroot().itertext() if text.strip()]


def test_all_schedules_are_named_over_three_panels_where_one_is_a_table(tmp_path: Path) -> None:
    plot_schedules(list(SEVERAL), list(SEVERAL.values()), tmp_path / "all.svg")
    found = texts(tmp_path / "all.svg")
    assert {"alpha_bar", "log-SNR", "beta", *SEVERAL} <= set(found)


def test_without_a_table_there_are_no_betas(tmp_path: Path) -> None:
    plot_schedules(["cosine"], [Cosine()], tmp_path / "one.svg")
    found = texts(tmp_path / "one.svg")
    assert "alpha_bar" in found
    assert "beta" not in found


def test_a_picture_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        written = []
        for folder in ("a", "b"):
            path = tmp_path / folder / f"two.{suffix}"
            plot_schedules(["cosine", "linear"], [Cosine(), linear()], path)
            written.append(path.read_bytes())
        assert written[0] == written[1]


def test_a_png_holds_the_curves(tmp_path: Path) -> None:
    plot_schedules(["cosine", "linear"], [Cosine(), linear()], tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(0x2F, 0x6D, 0xB5), (0xC8, 0x64, 0x1B)} <= colours


@pytest.mark.parametrize("name", ["plot.pdf", "plot"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.png or \.svg"):
        plot_schedules(["cosine"], [Cosine()], tmp_path / name)
    assert not (tmp_path / name).exists()


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one schedule"):
        plot_schedules([], [], tmp_path / "none.png")
