import pytest
from PIL import Image

from unfog.evaluation.pictures import COLOURS, MARKS, blank, dress, legend_above, panels, plain_ticks, save


def test_a_figure_is_written_alike_each_time_with_a_panel_for_each_place(tmp_path):
    for name in ("a", "b"):
        figure, axes = panels(2, 3, panel=(1.5, 1.0))
        assert [len(row) for row in axes] == [3, 3]
        save(figure, tmp_path / "folder" / f"{name}.png")
    with Image.open(tmp_path / "folder" / "a.png") as image:
        assert image.width / image.height == pytest.approx(4.5 / 2.0, rel=0.01)
        assert "Software" not in image.info
    assert (tmp_path / "folder" / "a.png").read_bytes() == (tmp_path / "folder" / "b.png").read_bytes()


def test_a_legend_names_each_line_once_and_takes_no_more_columns_than_fit():
    figure, ((left, right),) = panels(1, 2)
    for one in (left, right):
        for k in range(6):
            one.plot([0, 1], [k, k], label=f"a sampler with a long name, number {k}")
    legend_above(figure, [left, right])
    (legend,) = figure.legends
    assert [text.get_text()[-1] for text in legend.get_texts()] == list("012345")
    assert legend._ncols == 2


def test_without_names_there_is_no_legend():
    figure, ((one,),) = panels(1, 1)
    one.plot([0, 1], [0, 1])
    legend_above(figure, [one])
    assert figure.legends == []


def test_ticks_are_plain_numbers_at_the_values_given():
    _, ((one,),) = panels(1, 1)
    dress(one, "evaluations", "error", log_x=True, log_y=True)
    one.plot([4, 50], [1, 2])
    plain_ticks(one, [4, 20, 50])
    assert list(one.xaxis.get_majorticklocs()) == [4, 20, 50]
    assert one.xaxis.get_major_formatter()(20, 0) == "20"


def test_a_map_is_square_without_ticks():
    _, ((one,),) = panels(1, 1)
    blank(one, -2.0, 2.0, title="a map")
    assert (one.get_xlim(), one.get_ylim(), one.get_aspect()) == ((-2.0, 2.0), (-2.0, 2.0), 1.0)
    assert (len(one.get_xticks()), len(one.get_yticks())) == (0, 0)


def test_lines_are_told_apart_by_colour_and_by_mark():
    assert len(set(COLOURS)) == len(set(MARKS)) == len(COLOURS)
