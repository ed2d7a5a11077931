import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unfog.data.shapes.dataset import ShapesDataset
from unfog.data.shapes.draw import draw
from unfog.data.shapes.options import ShapesOptions
from unfog.data.shapes.scene import ATTRIBUTES, COUNT, SLOT_COLUMNS, Scenes, attributes_of, draw_scenes
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import VariancePreserving
from unfog.evaluation.adherence import Adherence, judged, measure_adherence, reading_error, score_adherence
from unfog.evaluation.disturbances import Blur, Clean, Elastic, Jpeg, Noise, Resized, Then
from unfog.evaluation.reading import read
from unfog.pipeline import Pipeline
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Attributes, Conditioner, Label
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.request import SampleSettings

NONE = torch.tensor([attribute.none for attribute in ATTRIBUTES])
NAMES = [attribute.name for attribute in ATTRIBUTES]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_scenes(11, 1, torch.arange(120), (1, 4))


@pytest.fixture(scope="module")
def pairs() -> Scenes:
    """Scenes of two objects of different colours and different shapes."""
    drawn = draw_scenes(12, 1, torch.arange(60), (2, 2))
    differ = (drawn.colour[:, 0] != drawn.colour[:, 1]) & (drawn.shape[:, 0] != drawn.shape[:, 1])
    return Scenes(**{name: value[differ] for name, value in vars(drawn).items()})


@pytest.mark.parametrize("size", [32, 45, 64, 128])
def test_exact_drawings_are_read_without_error(scenes: Scenes, size: int) -> None:
    for number, reading in enumerate(read(draw(scenes, size)[:80])):
        count = int(scenes.count[number])
        assert reading.background == int(scenes.background[number])
        found = [(one.cell, one.colour, one.shape, one.size) for one in reading.objects]
        each = zip(scenes.cell[number], scenes.colour[number], scenes.shape[number], scenes.size[number], strict=True)
        assert found == sorted(tuple(int(value) for value in one) for one in each)[-count:], number


def test_places_and_extents_are_read_between_the_pixels(scenes: Scenes) -> None:
    few = draw_scenes(11, 1, torch.arange(60), (1, 1))
    found = [reading.objects[0] for reading in read(draw(few, 32))]
    # A cell has 10.7 pixels: 0.03 cells are a third of one, the step between the drawings that are tried.
    assert (torch.tensor([one.centre for one in found]) - few.centre[:, 0]).abs().max() < 0.03
    assert (torch.tensor([one.radius for one in found]) / few.radius[:, 0] - 1).abs().max() < 0.1


def test_pictures_as_soft_and_noisy_as_samples_are_read() -> None:
    dataset = ShapesDataset(ShapesOptions((1, 4), test=250), "test", 32)
    soft = Then(Blur(0.7), Noise(0.05))
    (error,) = reading_error(dataset, count=250, seed=0, disturbances=[soft]).values()
    assert error.value <= 0.02


@pytest.mark.parametrize("disturbance", [Blur(1.0), Noise(0.1), Resized(0.75), Elastic(0.5)], ids=str)
def test_stronger_disturbances_are_withstood(disturbance: Blur | Noise | Resized | Elastic) -> None:
    dataset = ShapesDataset(ShapesOptions((1, 4), test=100), "test", 32)
    (error,) = reading_error(dataset, count=100, seed=0, disturbances=[disturbance]).values()
    assert error.value <= 0.03


def test_compression_spoils_small_pictures_and_is_said_to() -> None:
    dataset = ShapesDataset(ShapesOptions((1, 4), test=100), "test", 32)
    error = reading_error(dataset, count=100, seed=0, disturbances=[Clean(), Jpeg(40)])
    assert error["clean"].value == 0
    assert error["JPEG, quality 40"].value > 0.2


def test_what_is_like_no_shape_has_none() -> None:
    picture = torch.full((1, 3, 32, 32), 240, dtype=torch.uint8)
    picture[0, :, 3:20, 2:30] = torch.tensor([225, 25, 35], dtype=torch.uint8)[:, None, None]
    (reading,) = read(picture)
    assert [one.shape for one in reading.objects] == [None]
    assert reading.objects[0].colour == 0


@pytest.mark.parametrize("level", [16, 240])
def test_an_empty_picture_has_no_objects(level: int) -> None:
    assert read(torch.full((1, 3, 32, 32), level, dtype=torch.uint8))[0].objects == ()


def test_noise_alone_is_read_as_something_wrong(scenes: Scenes) -> None:
    noise = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert score_adherence(noise, attributes_of(scenes)[:20], {}).named.value == 0


def test_floats_are_read_as_the_levels_that_they_round_to(scenes: Scenes) -> None:
    pixels = draw(scenes, 32)[:10]
    assert read(pixels.float() / 127.5 - 1) == read(pixels)


def test_reading_does_not_depend_on_the_batch(scenes: Scenes) -> None:
    pixels = draw(scenes, 32)[:30]
    alone = [read(picture[None])[0] for picture in pixels]
    for one, other in zip(read(pixels), alone, strict=True):
        assert [found[:4] for found in one.objects] == [found[:4] for found in other.objects]


def test_what_was_asked_for_scores_one(scenes: Scenes) -> None:
    score = score_adherence(draw(scenes, 32), attributes_of(scenes), {})
    assert [score.named.value, score.binding and score.binding.value] == [1, 1]
    assert {name: value.value for name, value in score.attributes.items()} == dict.fromkeys(NAMES, 1.0)
    assert {name: value.value for name, value in score.by_count.items()} == dict.fromkeys("1234", 1.0)
    assert score.samples == len(scenes)


def test_exchanged_colours_are_right_as_a_set_and_bound_wrongly(pairs: Scenes) -> None:
    exchanged = replace(pairs, colour=pairs.colour[:, [1, 0, 2, 3]])
    wanted = attributes_of(pairs)
    score = score_adherence(draw(exchanged, 32), wanted, {})
    assert score.binding is not None
    assert score.binding.value == 0
    assert score.attributes["shape 1"].value == 1
    assert score.attributes["colour 1"].value == 0


def test_objects_are_matched_whatever_their_order(pairs: Scenes) -> None:
    swapped = Scenes(
        background=pairs.background,
        count=pairs.count,
        **{name: getattr(pairs, name)[:, [1, 0, 2, 3]] for name in ("colour", "shape", "size", "cell", "jitter")},
    )
    assert score_adherence(draw(swapped, 32), attributes_of(pairs), {}).named.value == 1


def test_one_object_is_not_matched_twice(pairs: Scenes) -> None:
    wanted = attributes_of(pairs)
    first, second = (list(columns) for columns in SLOT_COLUMNS)
    wanted[:, second] = wanted[:, first]
    wanted[:, -1] = NONE[-1]
    single = replace(pairs, count=torch.ones_like(pairs.count))
    right = judged(read(draw(single, 32)), wanted)
    assert (right[:, first].all(1) ^ right[:, second].all(1)).all()
    assert not right[:, COUNT].any()


def test_each_attribute_is_judged_by_itself(pairs: Scenes) -> None:
    pictures, truth = read(draw(pairs, 32)), attributes_of(pairs)
    for column, attribute in enumerate(ATTRIBUTES):
        wanted = truth.clone()
        wanted[:, column] = (wanted[:, column] + 1) % attribute.none
        right = judged(pictures, wanted)
        assert not right[:, column].any(), attribute.name
        assert right[:, [k for k in range(len(ATTRIBUTES)) if k != column]].all(), attribute.name


def test_what_is_not_named_is_not_judged(scenes: Scenes) -> None:
    wanted = NONE.repeat(len(scenes), 1)
    wanted[:, COUNT] = scenes.count - 1
    score = score_adherence(draw(scenes, 32), wanted, {})
    assert list(score.attributes) == ["count"]
    assert score.binding is None
    assert score.named.value == 1


def test_chance_is_what_samples_score_for_what_others_were_made_for(scenes: Scenes) -> None:
    score = score_adherence(draw(scenes, 32), attributes_of(scenes), {})
    assert score.chance["named"].value < 0.02
    # Three backgrounds that are equally frequent.
    assert score.chance["background"].low < 1 / 3 < score.chance["background"].high


def test_scores_survive_json(pairs: Scenes) -> None:
    dataset = ShapesDataset(ShapesOptions(test=20), "test", 32)
    score = score_adherence(draw(pairs, 32), attributes_of(pairs), reading_error(dataset, count=20, seed=0))
    assert Adherence.from_dict(json.loads(json.dumps(score.to_dict()))) == score


def test_wrong_arguments_are_refused(scenes: Scenes) -> None:
    pictures, wanted = draw(scenes, 32)[:4], attributes_of(scenes)[:4]
    for bad in (wanted[:3], wanted[:, :-1], wanted.float(), wanted + 10):
        with pytest.raises(ValueError, match="wanted attribute"):
            score_adherence(pictures, bad, {})
    with pytest.raises(ValueError, match="none in any row"):
        score_adherence(pictures, NONE.repeat(4, 1), {})
    for shape in ((4, 1, 32, 32), (4, 3, 32, 40), (4, 3, 16, 16)):
        with pytest.raises(ValueError, match="square pictures"):
            read(torch.zeros(shape))


class Drawing(Denoiser):
    """Knows the picture of each condition."""

    process = Gaussian(VariancePreserving())

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        assert cond is not None
        told = cond["attributes"]
        objects = torch.stack([told[:, list(columns)] for columns in SLOT_COLUMNS], 1)  # (B, slots, 4)
        # What is beyond the count is not drawn, and may be anything.
        absent = objects == NONE[list(SLOT_COLUMNS[0])]
        objects = objects.masked_fill(absent, 0).repeat(1, 2, 1)
        scenes = Scenes(told[:, 1], told[:, 0] + 1, *objects.unbind(-1), torch.zeros(len(told), 4, 3))
        return Prediction(draw(scenes, x_t.shape[-1]) / 127.5 - 1)


def pipeline(conditioner: Conditioner) -> Pipeline:
    return Pipeline(Drawing(), conditioner, Identity(), (3, 32, 32), SampleSettings(DDIM(), Trailing(), steps=2))


def test_a_model_that_draws_what_it_is_told_adheres() -> None:
    dataset = ShapesDataset(ShapesOptions((1, 2), test=60), "test", 32)
    told = pipeline(Attributes([len(attribute.values) for attribute in ATTRIBUTES]))
    found = measure_adherence(told, dataset, samples=40, guidance=1.0, seed=0, batch_size=16)
    assert (found.named.value, found.samples) == (1, 40)
    assert {name: error.value for name, error in found.reading_error.items()} == {
        "clean": 0,
        "blurred, sigma 0.7 px, then noisy, sigma 0.05": 0,
    }


def test_adherence_needs_a_model_of_attributes_and_their_data() -> None:
    dataset = ShapesDataset(ShapesOptions(test=10), "test", 32)
    with pytest.raises(ValueError, match=r"condition\.attributes=true"):
        measure_adherence(pipeline(Label(5, 0.1)), dataset, samples=5, guidance=1.0, seed=0, batch_size=5)
    with pytest.raises(ValueError, match="1 to 10 samples"):
        measure_adherence(pipeline(Label(5, 0.1)), dataset, samples=11, guidance=1.0, seed=0, batch_size=5)
