import json
from pathlib import Path

import pytest
import torch

from unfog.images import read_png_text
from unfog.pipeline import SampleRequest, Samples, SampleSettings
from unfog.recipe.export import columns_for, origin_of, read_record, save_images
from unfog.recipe.run import Run
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Karras

SETTINGS = SampleSettings(DDIM(eta=0.3), Karras(rho=5.0), steps=7, guidance=2.5)


def samples(count: int = 3, first: int = 5) -> Samples:
    request = SampleRequest(count, labels=[k % 2 for k in range(count)], seed=9, first=first, settings=SETTINGS)
    return Samples(torch.zeros(count, 1, 4, 4), request, SETTINGS)


def test_a_file_tells_the_request_for_its_own_sample(tmp_path: Path) -> None:
    paths = save_images(samples(), tmp_path, origin={"sha256": "abc"})
    assert [path.name for path in paths] == ["000005.png", "000006.png", "000007.png", "grid.png"]
    record = read_record(paths[1])
    assert record.request == SampleRequest(1, labels=1, seed=9, first=6, settings=SETTINGS)
    assert record.origin == {"sha256": "abc"}


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
