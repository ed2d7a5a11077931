import numpy as np
import pytest
import torch

from unfog.data.shapes.captions import attributes_in, put, some_of
from unfog.data.shapes.dataset import ShapesDataset
from unfog.data.shapes.options import ShapesOptions
from unfog.data.shapes.scene import ATTRIBUTES, COUNT, draw_scenes
from unfog.diffusion.random import Purpose, Rng

NONE = [attribute.none for attribute in ATTRIBUTES]


@pytest.fixture(scope="module")
def dataset() -> ShapesDataset:
    return ShapesDataset(ShapesOptions((1, 4)), size=32)


def row(**named: str) -> list[int]:
    """Return a row of attributes: colour_1="red" names colour 1."""
    values = {name.replace("_", " "): value for name, value in named.items()}
    return [a.values.index(values[a.name]) if a.name in values else a.none for a in ATTRIBUTES]


def test_captions_are_true_of_their_pictures(dataset: ShapesDataset) -> None:
    ids = np.arange(600)
    truth = dataset.gather(ids)["attributes"].tolist()
    for caption, true in zip(dataset.captions(ids), truth, strict=True):
        for named, value, attribute in zip(attributes_in(caption), true, ATTRIBUTES, strict=True):
            assert named in (value, attribute.none), (caption, attribute.name)


def test_what_is_put_into_words_is_read_back() -> None:
    scenes = draw_scenes(3, 0, torch.arange(600), (1, 4))
    named = some_of(scenes, Rng.of(1, 600)).tolist()
    choices = Rng.of(2, 600).uniform((16,), Purpose.SCRATCH).tolist()
    for wanted, chosen in zip(named, choices, strict=True):
        caption = put(wanted, chosen)
        assert attributes_in(caption) == wanted, caption


def test_each_attribute_is_named_in_some_captions_and_not_in_others() -> None:
    named = some_of(draw_scenes(3, 0, torch.arange(600), (1, 4)), Rng.of(1, 600))
    for column, attribute in enumerate(ATTRIBUTES):
        silent = named[:, column] == attribute.none
        assert bool(silent.any()) == (column != COUNT), attribute.name
        assert not bool(silent.all()), attribute.name


def test_paraphrases_say_the_same_in_other_words(dataset: ShapesDataset) -> None:
    ids = np.arange(50)
    told = [dataset.captions(ids, paraphrase) for paraphrase in range(4)]
    for several in zip(*told, strict=True):
        assert len({tuple(attributes_in(caption)) for caption in several}) == 1
    assert sum(len(set(several)) > 1 for several in zip(*told, strict=True)) > 45


def test_each_structure_has_six_frames_and_more() -> None:
    structures = (
        row(count="1", colour_1="red", shape_1="ring"),
        row(count="2", shape_1="ring", shape_2="circle", relation="left of"),
        row(count="3", shape_1="cross", shape_2="cross"),
    )
    for wanted in structures:
        frames = {put([*wanted], [(k + 0.5) / 8] + [0.0] * 15) for k in range(8)}
        assert len(frames) >= 6


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("three red circles", row(count="3", colour_1="red", colour_2="red", shape_1="circle", shape_2="circle")),
        ("A big violet box.", row(count="1", colour_1="purple", shape_1="square", size_1="large")),
        (
            "on a gray background, a ring above and to the left of an orange shape",
            row(count="2", background="grey", shape_1="ring", colour_2="orange", relation="above and left of"),
        ),
        (
            "there is a cross in the middle and a disc at the top",
            row(count="2", shape_1="cross", cell_1="centre", shape_2="circle", cell_2="top"),
        ),
    ],
)
def test_captions_of_people_are_read(caption: str, named: list[int]) -> None:
    assert attributes_in(caption) == named


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a red circle with a hat", "two circles and a ring", "a ring under a cross", "I like a red ring"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        attributes_in(text)


@pytest.mark.parametrize(
    "wrong",
    [
        row(colour_1="red"),
        row(count="1", shape_2="ring"),
        row(count="3", shape_1="ring", shape_2="cross"),
        row(count="3", shape_1="ring", shape_2="ring", cell_1="top"),
    ],
)
def test_attributes_that_do_not_go_together_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        put(wrong, [0.0] * 16)
