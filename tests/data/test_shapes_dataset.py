import pickle
from typing import Any

import numpy as np
import pytest
import torch

from unfog.data.check import examiners
from unfog.data.dataset import Dataset, pixel_digest
from unfog.data.loader import ShuffledBatches
from unfog.data.shapes.dataset import ShapesDataset
from unfog.data.shapes.options import ShapesOptions, read_options
from unfog.data.shapes.scene import ATTRIBUTES, SHAPES
from unfog.data.sources import DataSpec, open_dataset, open_parts
from unfog.recipe.data import open_data
from unfog.recipe.schema import DataConfig


def test_a_recipe_opens_both_parts() -> None:
    data = open_data(DataConfig("shapes:train=40,test=20", size=32), labelled=True)
    assert (len(data.train), len(data.test)) == (40, 20)
    for part in data:
        values = part.gather(np.arange(5))
        assert {name: (tuple(value.shape[1:]), value.dtype) for name, value in values.items()} == dict(part.info.fields)
        assert part.info.attributes == ATTRIBUTES
        assert part.info.classes == SHAPES


def test_pictures_whose_attributes_tell_of_sides_are_not_mirrored() -> None:
    with pytest.raises(ValueError, match=r"data\.flip=false"):
        open_data(DataConfig("shapes", size=32, flip=True))


def test_an_example_depends_on_nothing_but_its_number() -> None:
    dataset = ShapesDataset(ShapesOptions(), size=32)
    some, one = dataset.gather(torch.tensor([5, 77, 5])), dataset.gather(np.array([77]))
    for name, value in some.items():
        assert torch.equal(value[1], one[name][0]), name
        assert torch.equal(value[0], value[2]), name


def test_the_label_is_the_shape_of_the_first_object() -> None:
    values = ShapesDataset(ShapesOptions()).gather(np.arange(50))
    column = [attribute.name for attribute in ATTRIBUTES].index("shape 1")
    assert torch.equal(values["label"], values["attributes"][:, column])


def test_pictures_lie_on_the_levels_of_eight_bits() -> None:
    values = open_dataset(DataSpec("shapes", raw=True)).gather(np.arange(3))
    assert np.array_equal(values["pixels"].numpy() / np.float32(127.5) - 1, values["x0"].numpy())


def test_no_picture_is_in_both_parts_or_twice() -> None:
    pictures = [
        picture.numpy().tobytes()
        for part in ("train", "test")
        for picture in ShapesDataset(ShapesOptions((1, 1)), part, raw=True).gather(np.arange(800))["pixels"]
    ]
    assert len(set(pictures)) == len(pictures)


def test_opening_twice_gives_the_same_set() -> None:
    assert open_dataset(DataSpec("shapes")).info == open_dataset(DataSpec("shapes")).info


@pytest.mark.parametrize(
    "other", [{"path": "shapes:seed=1"}, {"path": "shapes:objects=1"}, {"split": "test"}, {"size": 40}, {"limit": 9}]
)
def test_another_set_has_another_fingerprint(other: dict[str, Any]) -> None:
    found = open_dataset(DataSpec(**{"path": "shapes", **other}))
    assert found.info.fingerprint != open_dataset(DataSpec("shapes")).info.fingerprint


def test_a_limit_takes_classes_in_proportion() -> None:
    limited = open_dataset(DataSpec("shapes:train=500", limit=50))
    whole = open_dataset(DataSpec("shapes:train=500")).gather(np.arange(500))["label"].bincount()
    found = limited.gather(np.arange(50))["label"].bincount()
    assert len(limited) == 50
    assert (found - whole / 10).abs().max() <= 1


def test_it_is_pickled_without_its_pictures() -> None:
    dataset = ShapesDataset(ShapesOptions(train=100))
    stored = pickle.dumps(dataset)
    other: Dataset = pickle.loads(stored)
    assert len(stored) < 10_000
    assert torch.equal(other.gather(np.arange(3))["x0"], dataset.gather(np.arange(3))["x0"])


def test_batches_deliver_attributes() -> None:
    batch = ShuffledBatches(ShapesDataset(ShapesOptions(train=50)), seed=0, flip=False).take(0, 8)
    assert batch.values["attributes"].shape == (8, len(ATTRIBUTES))


def test_a_check_decodes_what_training_sees() -> None:
    path = "shapes:train=30,test=30"
    for examiner, part in zip(examiners(DataSpec(path), None), open_parts(DataSpec(path, raw=True), 0.1), strict=True):
        assert list(examiner)[-1] == 30
        found = examiner.result()
        assert not found.refusals
        assert not found.report.skipped
        assert found.captions is not None
        assert found.captions.present == 30
        pixels = np.stack([item.content for item in examiner.source.stream(np.arange(30))]).transpose(0, 3, 1, 2)
        assert pixel_digest(pixels) == pixel_digest(part.gather(np.arange(30))["pixels"].numpy())


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("shapes:object=2", "did you mean objects"),
        ("shapes:objects=5", "1-4"),
        ("shapes:objects=3-1", "3-1"),
        ("shapes:objects=two", "such as 2 or 1-3"),
        ("shapes:train=0", "train"),
        ("shapes:train=1.5", "whole number"),
        ("shapes:seed=1,seed=2", "twice"),
        ("shapes:", "is no option"),
    ],
)
def test_wrong_options_are_refused(path: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        open_dataset(DataSpec(path))


@pytest.mark.parametrize(
    "option", [{"size": 8}, {"size": (32, 48)}, {"channels": 1}, {"value_range": (0.0, 1.0)}, {"split": "valid"}]
)
def test_what_cannot_be_drawn_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        open_dataset(DataSpec("shapes", **option))


@pytest.mark.parametrize("name", ["shapes", "shapes:objects=1-2", "shapes:objects=2-2,train=100,test=50,seed=7"])
def test_a_set_is_called_by_its_shortest_name(name: str) -> None:
    assert read_options(name).name == name


def test_numbers_outside_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 49"):
        ShapesDataset(ShapesOptions(train=50)).gather(np.array([50]))
