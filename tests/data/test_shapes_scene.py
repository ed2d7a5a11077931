import numpy as np
import pytest
import torch

from unfog.data.shapes.draw import draw, stamps
from unfog.data.shapes.scene import (
    ABSENT,
    ALIKE,
    ATTRIBUTES,
    CELLS,
    MOST,
    RADIUS_JITTER,
    RELATION,
    SHAPES,
    SIDE,
    SIZES,
    SLOT_COLUMNS,
    Relation,
    Scenes,
    attributes_of,
    draw_scenes,
    relation_of,
)

MANY = 4000


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_scenes(0, 0, torch.arange(MANY), (1, 4))


def test_a_scene_depends_on_nothing_but_its_number(scenes: Scenes) -> None:
    numbers = torch.tensor([17, 3, 999])
    alone = draw_scenes(0, 0, numbers, (1, 4))
    for name in ("background", "count", "colour", "shape", "size", "cell", "jitter"):
        assert torch.equal(getattr(alone, name), getattr(scenes, name)[numbers]), name


def test_counts_are_equally_frequent_and_within_their_range() -> None:
    counts = draw_scenes(0, 0, torch.arange(MANY), (2, 4)).count
    found = torch.bincount(counts, minlength=MOST + 1)
    assert found[:2].sum() == 0
    # Five standard deviations of a binomial count of 4,000 draws with probability 1/3.
    assert (found[2:] - MANY / 3).abs().max() < 5 * (MANY * 2 / 9) ** 0.5


def test_each_value_of_each_attribute_occurs(scenes: Scenes) -> None:
    found = attributes_of(scenes)
    for column, attribute in enumerate(ATTRIBUTES):
        assert set(range(len(attribute.values))) <= set(found[:, column].tolist()), attribute.name


def test_absent_objects_have_no_values(scenes: Scenes) -> None:
    for name in ("colour", "shape", "size", "cell"):
        assert torch.equal(getattr(scenes, name) == ABSENT, ~scenes.present), name


def test_the_cells_of_a_scene_differ(scenes: Scenes) -> None:
    for cells, count in zip(scenes.cell.tolist(), scenes.count.tolist(), strict=True):
        assert len(set(cells[:count])) == count


def test_objects_lie_inside_their_cells(scenes: Scenes) -> None:
    corner = torch.stack([scenes.cell % SIDE, scenes.cell // SIDE], -1)
    reach = (scenes.centre - corner - 0.5).abs().amax(-1) + scenes.radius
    assert reach[scenes.present].max() < 0.5


def test_groups_are_alike_and_other_pairs_differ_in_colour_or_shape(scenes: Scenes) -> None:
    look = scenes.colour * len(SHAPES) + scenes.shape
    for row, count in zip(look.tolist(), scenes.count.tolist(), strict=True):
        assert count <= 2 or len(set(row[:count])) == 1
    pairs = look[scenes.count == 2]
    alike = (pairs[:, 0] == pairs[:, 1]).float().mean()
    assert abs(float(alike) - ALIKE) < 5 * (ALIKE * (1 - ALIKE) / len(pairs)) ** 0.5


def test_no_scene_of_one_part_is_in_the_other() -> None:
    parts = [draw_scenes(0, part, torch.arange(MANY), (1, 3)).jitter[:, 0, 0] for part in (0, 1)]
    grains = [((part.double() + 1) * 2**22).floor().long() for part in parts]
    assert [set((grain % 2).tolist()) for grain in grains] == [{0}, {1}]


def test_seeds_give_other_scenes() -> None:
    one, two = (draw_scenes(seed, 0, torch.arange(100), (1, 3)).jitter for seed in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("wrong", [(0, 2), (3, 2), (1, MOST + 1)])
def test_objects_out_of_range_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="objects"):
        draw_scenes(0, 0, torch.arange(1), wrong)


def test_attributes_of_one_object_stand_in_one_slot(scenes: Scenes) -> None:
    found = attributes_of(scenes)
    for slot, columns in enumerate(SLOT_COLUMNS):
        told = found[scenes.present[:, slot]][:, columns]
        own = torch.stack([scenes.colour, scenes.shape, scenes.size, scenes.cell], -1)[scenes.present[:, slot], slot]
        assert torch.equal(told, own)
        assert [ATTRIBUTES[column].name for column in columns] == [
            f"{name} {slot + 1}" for name in ("colour", "shape", "size", "cell")
        ]


def test_what_is_absent_has_the_number_of_none(scenes: Scenes) -> None:
    single = attributes_of(scenes)[scenes.count == 1]
    for column in (*SLOT_COLUMNS[1], RELATION):
        assert set(single[:, column].tolist()) == {ATTRIBUTES[column].none}


def test_the_relation_of_two_cells_is_that_of_their_rows_and_columns() -> None:
    cells = torch.arange(SIDE * SIDE)
    centre = torch.stack([cells % SIDE, cells // SIDE], -1).float()
    found = relation_of(centre[:, None], centre[None])
    for a in range(SIDE * SIDE):
        for b in range(SIDE * SIDE):
            words = [
                ("ABOVE", "BELOW", "")[(a // SIDE > b // SIDE) + 2 * (a // SIDE == b // SIDE)],
                ("LEFT", "RIGHT", "")[(a % SIDE > b % SIDE) + 2 * (a % SIDE == b % SIDE)],
            ]
            if a != b:
                assert Relation(int(found[a, b])).name == "_".join(word for word in words if word)


def test_objects_close_to_each_other_are_related_along_the_longer_distance() -> None:
    first = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    second = torch.tensor([[0.3, -0.1], [0.1, -0.3]])
    assert relation_of(first, second).tolist() == [Relation.LEFT, Relation.BELOW]


def test_a_stamp_covers_the_area_of_its_shape() -> None:
    r = 20.0
    areas = {
        "circle": np.pi * 0.97**2,
        "square": (2 * 0.88) ** 2,
        "triangle": 0.95 * 1.66,
        "cross": 4 * 2 * 0.36 - (2 * 0.36) ** 2,
        "ring": np.pi * (1 - 0.55**2),
    }
    for k, name in enumerate(SHAPES):
        cover = stamps(torch.tensor([k]), torch.tensor([[24.3, 25.1]]), torch.tensor([r]), 50)
        # The distance to the nearest line is too short beyond corners, which costs about a pixel at each.
        assert float(cover.sum()) == pytest.approx(areas[name] * r * r, rel=0.004), name


def test_larger_pictures_show_the_same(scenes: Scenes) -> None:
    few = draw_scenes(0, 0, torch.arange(64), (1, 4))
    small, large = (draw(few, size).float() for size in (32, 128))
    mean = torch.nn.functional.avg_pool2d(large, 4)
    # Both are anti-aliased: what differs is the coverage of single pixels at the edges, by a few levels of 255.
    assert (mean - small).abs().mean() < 0.5
    assert (mean - small).abs().max() < 40


def test_drawing_does_not_depend_on_the_batch() -> None:
    scenes = draw_scenes(0, 0, torch.arange(40), (1, 4))
    alone = draw(draw_scenes(0, 0, torch.tensor([23]), (1, 4)), 32)
    assert torch.equal(draw(scenes, 32)[23], alone[0])


def test_sizes_are_told_apart_in_spite_of_jitter() -> None:
    assert SIZES["small"] * (1 + RADIUS_JITTER) < SIZES["large"] * (1 - RADIUS_JITTER)


def test_there_is_a_name_for_each_cell() -> None:
    assert len(set(CELLS)) == SIDE * SIDE
