import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.data.dataset import to_uint8
from unfog.data.sources import DataSpec
from unfog.images import read_png_text
from unfog.pipeline import Samples
from unfog.recipe.export import (
    columns_for,
    file_names,
    open_pictures,
    origin_of,
    read_record,
    save_grid,
    save_images,
)
from unfog.recipe.run import Run
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Karras
from unfog.sampling.request import SampleRequest, SampleSettings

SETTINGS = SampleSettings(DDIM(eta=0.3), Karras(rho=5.0), steps=7, guidance=2.5)


def samples(count: int = 3, first: int = 5, channels: int = 1) -> Samples:
    request = SampleRequest(count, labels=[k % 2 for k in range(count)], seed=9, first=first, settings=SETTINGS)
    x = torch.linspace(-1, 1, count * channels * 16).reshape(count, channels, 4, 4)
    return Samples(x, request, SETTINGS)


def test_a_file_tells_the_request_for_its_own_sample(tmp_path: Path) -> None:
    paths = save_images(samples(), tmp_path, origin={"sha256": "abc"})
    assert [path.name for path in paths] == ["000005.png", "000006.png", "000007.png", "grid.png"]
    record = read_record(paths[1])
    assert record.request == SampleRequest(1, labels=1, seed=9, first=6, settings=SETTINGS)
    assert record.origin == {"sha256": "abc"}


@pytest.mark.parametrize("channels", [2, 5])
def test_samples_that_png_has_no_room_for_are_arrays_with_their_record_beside_them(
    tmp_path: Path, channels: int
) -> None:
    answer = samples(channels=channels)
    paths = save_images(answer, tmp_path, origin={"sha256": "abc"})
    assert [path.name for path in paths] == ["000005.npy", "000006.npy", "000007.npy", "grid.png"]
    assert [path.name for path in paths[:-1]] == file_names(channels, answer.request)
    assert np.array_equal(np.load(paths[1]), to_uint8(answer.x[1]).numpy())
    for path in (paths[1], paths[1].with_suffix(".json")):
        record = read_record(path)
        assert record.request == SampleRequest(1, labels=1, seed=9, first=6, settings=SETTINGS)
        assert record.origin == {"sha256": "abc"}


def test_the_grid_of_bands_has_a_row_a_sample_and_a_column_a_band(tmp_path: Path) -> None:
    answer = samples(channels=5)
    with Image.open(save_images(answer, tmp_path)[-1]) as grid:
        sheet = np.asarray(grid)
    assert sheet.shape == (3 * 6 - 2, 5 * 6 - 2)
    assert np.array_equal(sheet[6:10, 18:22], to_uint8(answer.x[1, 3]).numpy())


def test_a_grid_of_many_bands_shows_the_first_samples(tmp_path: Path) -> None:
    answer = samples(count=70, channels=100)
    save_grid(answer, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (100 * 6 - 2, 2 * 6 - 2)
    assert json.loads(read_png_text(tmp_path / "grid.png")["unfog"])["count"] == 70


def test_four_channels_are_colour_and_opacity(tmp_path: Path) -> None:
    answer = samples(channels=4)
    with Image.open(save_images(answer, tmp_path)[1]) as image:
        assert image.mode == "RGBA"
        assert np.array_equal(np.asarray(image), to_uint8(answer.x[1]).permute(1, 2, 0).numpy())


def test_an_array_without_its_record_is_refused(tmp_path: Path) -> None:
    path = save_images(samples(channels=2), tmp_path)[0]
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"its record 000005\.json is not beside it"):
        read_record(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("a.npy", "a.json", "a.png"):
        with pytest.raises(FileNotFoundError, match=name):
            read_record(tmp_path / name)


def test_a_file_names_the_class_and_the_versions(tmp_path: Path) -> None:
    path = save_images(samples(), tmp_path, classes=("cat", "dog"))[1]
    told = json.loads(read_png_text(path)["unfog"])
    assert told["class"] == "dog"
    assert told["torch"] == torch.__version__
    assert told["unfog"]


def test_a_sample_is_made_again_from_its_file(tmp_path: Path, trained: Run) -> None:
    pipeline, weights = trained.pipeline(), trained.weights()
    settings = SampleSettings(DDIM(eta=0.5), Karras(), steps=3, guidance=2.0)
    request = SampleRequest(4, labels=[3, 1, 4, 1], seed=2, settings=settings)
    answer = pipeline.sample(request)
    path = save_images(answer, tmp_path, origin=origin_of(trained, weights))[2]
    record = read_record(path)
    assert record.origin["sha256"] == weights.sha256
    # The sums of a batch of one may be formed in another order than those of four.
    torch.testing.assert_close(pipeline.sample(record.request).x[0], answer.x[2], rtol=0, atol=1e-5)


def test_the_grid_is_not_taken_for_a_sample(tmp_path: Path) -> None:
    grid = save_images(samples(), tmp_path)[-1]
    with pytest.raises(ValueError, match="a grid of 3 samples"):
        read_record(grid)


def test_an_image_of_another_origin_is_refused(tmp_path: Path) -> None:
    from unfog.images import write_png

    write_png(tmp_path / "a.png", torch.zeros(1, 2, 2), {"Title": "x"})
    with pytest.raises(ValueError, match="does not say how it was made"):
        read_record(tmp_path / "a.png")
    write_png(tmp_path / "b.png", torch.zeros(1, 2, 2), {"unfog": "{}"})
    with pytest.raises(ValueError, match="in a way that cannot be read"):
        read_record(tmp_path / "b.png")


def test_classes_in_turn_stand_below_each_other() -> None:
    assert columns_for(6, ("a", "b"), SampleRequest(6, labels=[0, 1, 0, 1, 0, 1])) == 2
    assert columns_for(6, ("a", "b"), SampleRequest(6, labels=0)) == 3


def test_latents_are_written_as_they_are_with_their_record_beside_them(tmp_path: Path) -> None:
    answer = samples(channels=4)
    far = Samples(3.7 * answer.x, answer.request, answer.settings)
    paths = save_images(replace(far, latent=True), tmp_path, origin={"sha256": "abc"})
    assert [path.name for path in paths] == ["000005.npy", "000006.npy", "000007.npy"]
    assert [path.name for path in paths] == file_names(4, answer.request, latent=True)
    assert np.array_equal(np.load(paths[1]), far.x[1].numpy())
    assert read_record(paths[1]).request == SampleRequest(1, labels=1, seed=9, first=6, settings=SETTINGS)
    assert not (tmp_path / "grid.png").exists()


def test_samples_are_opened_without_their_grid(tmp_path: Path) -> None:
    answer = samples()
    save_images(answer, tmp_path)
    opened = open_pictures(tmp_path, DataSpec("digits"))
    everything = opened.gather(torch.arange(len(opened)))
    assert torch.equal(to_uint8(everything["x0"]), to_uint8(answer.x))
    assert everything["label"].tolist() == [0, 1, 0]


def test_samples_without_classes_are_opened_without(tmp_path: Path) -> None:
    answer = samples()
    save_images(replace(answer, request=replace(answer.request, labels=[1, None, 0])), tmp_path)
    assert "label" not in open_pictures(tmp_path, DataSpec("digits")).info.fields


def test_a_grid_without_samples_is_refused(tmp_path: Path) -> None:
    save_images(samples(), tmp_path)
    for path in tmp_path.glob("0*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"samples beside .*grid\.png"):
        open_pictures(tmp_path, DataSpec("digits"))
