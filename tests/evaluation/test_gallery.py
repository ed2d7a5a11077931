import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.data.dataset import to_uint8
from unfog.diffusion.parameterization import EDM
from unfog.diffusion.schedule import Cosine, VarianceExploding
from unfog.evaluation import gallery
from unfog.sampling.request import SampleRequest


def pixels(picture):
    """Decode a picture to ``(C, H, W)`` uint8."""
    head, body = picture.uri.split(",")
    assert head == "data:image/png;base64"
    decoded = torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(body)))))
    return decoded[None] if decoded.ndim == 2 else decoded.permute(2, 0, 1)


def classes_of(pipeline):
    """What the rows of a model of classes are asked for, which needs no examples."""
    return gallery.Subjects.of(pipeline, None)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_survives_its_uri(channels):
    image = torch.arange(channels * 20, dtype=torch.uint8).reshape(channels, 4, 5)
    assert torch.equal(pixels(gallery.Picture(gallery.png_uri(image), "")), image)


@pytest.mark.parametrize(("channels", "shown"), [(2, [0, 1, 0]), (5, [0, 1, 2])])
def test_of_bands_some_are_shown_in_colour(channels, shown):
    image = torch.arange(channels * 20, dtype=torch.uint8).reshape(channels, 4, 5)
    assert torch.equal(pixels(gallery.Picture(gallery.png_uri(image), "")), image[shown])


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (1, ""),
        (2, "first is shown in magenta, the second in green"),
        (3, ""),
        (4, "as opacity"),
        (5, "5 channels, of which the first three"),
    ],
)
def test_which_bands_are_shown_is_said(toy_pipeline, channels, words):
    pipeline, _ = toy_pipeline(channels=channels)
    note = gallery.samples(pipeline, classes_of(pipeline), 2, 0).note
    assert words in note if words else note == ""


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (16, 8), (1, 40), (40, 1)])
def test_images_of_any_shape_are_enlarged_alike_along_both_sides(size):
    table = gallery.gallery([gallery.Row("", (gallery.Picture("", ""),))], (), (1, *size))
    assert table.side % size[1] == 0
    # At most one whole step away from 80 pixels along the longer side.
    assert abs(max(size) * table.side // size[1] - 80) <= max(size) / 2


def test_small_images_are_enlarged_by_whole_numbers():
    for side in (8, 28, 32, 64):
        table = gallery.gallery([gallery.Row("", (gallery.Picture("", ""),))], (), (1, side, side))
        assert table.side % side == 0
        assert table.smooth == (side >= 64)


def test_noising_begins_with_the_image_and_ends_with_noise_alone(toy_pipeline, toy_dataset):
    data = toy_dataset(4, 0)
    denoiser = toy_pipeline()[0].denoiser
    first, *_, last = gallery.noising(denoiser, data, 5, seed=0).rows[0].pictures
    assert torch.equal(pixels(first), to_uint8(data.gather(torch.tensor([0]))["x0"])[0])
    other = gallery.noising(denoiser, toy_dataset(4, 9), 5, seed=0).rows[0].pictures[-1]
    assert (first.under[-1], last.under[-1]) == ("λ ∞", "λ −∞")
    assert other.uri == last.uri


def test_the_levels_of_noise_look_alike_whatever_the_schedule(toy_pipeline, toy_dataset):
    exploding, _ = toy_pipeline(schedule=VarianceExploding(), parameterization=EDM())
    usual, _ = toy_pipeline(schedule=Cosine())
    shown = [gallery.noising(p.denoiser, toy_dataset(4, 0), 5, 0).rows[0].pictures for p in (exploding, usual)]
    assert [p.under[-1] for p in shown[0][1:-1]] == [p.under[-1] for p in shown[1][1:-1]]
    # The same log-SNR is the same image up to the rounding of a pixel's value.
    assert (pixels(shown[0][2]).int() - pixels(shown[1][2]).int()).abs().max() <= 1


def test_denoising_ends_with_the_sample(toy_pipeline):
    pipeline, _ = toy_pipeline()
    table = gallery.denoising(pipeline, classes_of(pipeline), 9, seed=4)
    sample = to_uint8(pipeline.sample(SampleRequest(2, [0, 1], 4)).x)
    assert [row.label for row in table.rows] == ["left & top: x", "its x0", "right: x", "its x0"]
    assert torch.equal(pixels(table.rows[2].pictures[-1]), sample[1])
    assert table.width == len(table.columns) == 3


def test_many_steps_are_thinned_to_the_columns_there_are(toy_pipeline):
    pipeline, _ = toy_pipeline()
    pipeline.settings = replace(pipeline.settings, steps=40)
    table = gallery.denoising(pipeline, classes_of(pipeline), 5, seed=0)
    assert (table.columns[0], table.columns[-1], table.width) == ("t = 0.975", "t = 0", 5)


def test_a_column_of_the_classes_starts_from_one_noise(toy_pipeline):
    pipeline, _ = toy_pipeline()
    table = gallery.samples(pipeline, classes_of(pipeline), 3, seed=7)
    for label, row in enumerate(table.rows):
        request = SampleRequest(1, label, 7, first=2)
        assert torch.equal(pixels(row.pictures[2]), to_uint8(pipeline.sample(request).x)[0])


def test_guidance_of_one_is_the_model_as_it_is(toy_pipeline):
    pipeline, _ = toy_pipeline()
    table = gallery.by_guidance(pipeline, classes_of(pipeline), seed=7)
    plain = to_uint8(pipeline.sample(SampleRequest(2, [0, 1], 7)).x)
    column = table.columns.index("1")
    assert all(torch.equal(pixels(row.pictures[column]), plain[k]) for k, row in enumerate(table.rows))
    assert table.columns == ("0", "1", "2", "3", "5")


def test_there_is_no_guidance_without_classes_or_without_a_null(toy_pipeline):
    for pipeline, _ in (toy_pipeline(classes=0), toy_pipeline(dropout=0.0)):
        assert gallery.by_guidance(pipeline, classes_of(pipeline), 0) is None


def test_of_many_classes_ten_are_shown_the_first_and_the_last_among_them(toy_pipeline):
    shown = gallery.shown_classes(toy_pipeline(classes=100)[0])
    assert (len(shown), shown[0], shown[-1]) == (10, 0, 99)


def test_a_model_without_classes_shows_samples(toy_pipeline):
    pipeline, _ = toy_pipeline(classes=0)
    table = gallery.samples(pipeline, classes_of(pipeline), 4, seed=1)
    sample = to_uint8(pipeline.sample(SampleRequest(24, None, 1)).x)
    shown = [pixels(picture) for row in table.rows for picture in row.pictures]
    assert torch.equal(torch.stack(shown), sample)


def test_a_model_of_attributes_is_asked_for_those_of_examples_which_stand_beside(told_pipeline, shapes):
    pipeline, test = told_pipeline[0], shapes[1]
    subjects = gallery.Subjects.of(pipeline, test)
    assert subjects.names == tuple(f"no. {k}" for k in range(gallery.EXAMPLES))
    table = gallery.samples(pipeline, subjects, 3, seed=5)
    assert table.split
    assert table.columns == ("real", "noise 0", "noise 1", "noise 2")
    fields = test.gather(torch.arange(gallery.EXAMPLES))
    told = [tuple(row) for row in fields["attributes"].tolist()]
    for k, row in enumerate(table.rows):
        assert torch.equal(pixels(row.pictures[0]), to_uint8(fields["x0"])[k])
        alone = pipeline.sample(SampleRequest(1, seed=5, first=2, attributes=told[k]))
        assert torch.equal(pixels(row.pictures[3]), to_uint8(alone.x)[0])
    one = [a.values[v] for a, v in zip(test.info.attributes, told[0], strict=True) if v < a.none]
    assert all(value in table.rows[0].pictures[0].alt for value in one)


def test_attributes_are_guided_by_and_shown_on_their_way(told_pipeline, shapes):
    pipeline, test = told_pipeline[0], shapes[1]
    subjects = gallery.Subjects.of(pipeline, test)
    table = gallery.by_guidance(pipeline, subjects, seed=5)
    assert table.columns == ("real", "0", "1", "2", "3", "5")
    told = [tuple(row) for row in test.gather(torch.arange(gallery.EXAMPLES))["attributes"].tolist()]
    at_two = to_uint8(pipeline.sample(SampleRequest(len(told), attributes=told, seed=5)).x)
    assert all(torch.equal(pixels(row.pictures[3]), at_two[k]) for k, row in enumerate(table.rows))
    rows = gallery.denoising(pipeline, subjects, 4, seed=5).rows
    assert [row.label for row in rows[::2]] == ["no. 0: x", "no. 2: x", "no. 5: x"]
    chosen = to_uint8(pipeline.sample(SampleRequest(3, attributes=[told[k] for k in (0, 2, 5)], seed=5)).x)
    assert torch.equal(pixels(rows[4].pictures[-1]), chosen[2])


def test_a_copy_is_found_at_distance_zero(toy_dataset):
    train = toy_dataset(50, 0)
    copies = to_uint8(train.gather(torch.tensor([17, 30]))["x0"])
    first, second = gallery.neighbours(copies, ["a", "b"], train)
    assert first.rows[0].pictures[1].under == ("0.0", "no. 17")
    assert second.rows[0].pictures[1].under == ("0.0", "no. 30")
    assert first.split


def test_neighbours_are_the_same_when_the_set_is_read_in_parts(toy_dataset, monkeypatch):
    train, samples = toy_dataset(50, 0), to_uint8(toy_dataset(4, 1).gather(torch.arange(4))["x0"])
    whole = gallery.nearest_pixels(samples, train, 3)
    monkeypatch.setattr(gallery, "_CHUNK", 2)
    parts = gallery.nearest_pixels(samples, train, 3)
    assert torch.equal(whole.indices, parts.indices)
    every = to_uint8(train.gather(torch.arange(50))["x0"]).double().flatten(1)
    truth = (every - samples[0].double().flatten()).norm(dim=1).sort()
    assert torch.equal(whole.indices[0], truth.indices[:3])
    # Exact differences, summed in float64.
    torch.testing.assert_close(whole.distances[0], truth.values[:3], rtol=1e-12, atol=0)


def test_pairs_stand_above_each_other(toy_dataset):
    train = toy_dataset(50, 0)
    samples = to_uint8(toy_dataset(2, 1).gather(torch.arange(2))["x0"])
    table = gallery.pairs(samples, train, [5, 6], [0.5, 12.25])
    assert torch.equal(pixels(table.rows[0].pictures[1]), samples[1])
    assert table.rows[1].pictures[1].under == ("12.2", "no. 6")
