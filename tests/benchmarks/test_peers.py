import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.peers import stand_in
from benchmarks.peers.peer import Shuffled, exact_halvings, nearest_width, parameters
from PIL import Image
from torch import nn

try:
    metadata.version("torchvision")
    ABSENT = False
except metadata.PackageNotFoundError:  # a stand-in, which another test may have put there, has none
    ABSENT = True


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in in the place of torchvision, for one test."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what was there is put back
        monkeypatch.delitem(sys.modules, name)
    with stand_in.present():
        yield


def picture(height: int = 6, width: int = 8) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.skipif(not ABSENT, reason="torchvision itself is installed")
@pytest.mark.usefixtures("installed")
def test_the_stand_in_is_imported_as_torchvision() -> None:
    from torchvision import transforms as T
    from torchvision import utils

    assert T.Compose is stand_in.Compose
    assert utils.save_image is stand_in.save_image
    assert importlib.util.find_spec("torchvision") is not None


@pytest.mark.skipif(not ABSENT, reason="torchvision itself is installed")
@pytest.mark.usefixtures("installed")
def test_a_name_that_the_stand_in_lacks_is_missed_and_not_made_up() -> None:
    with pytest.raises(ImportError):
        from torchvision.transforms import RandomRotation  # noqa: F401


def test_the_stand_in_gives_way_to_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = object()
    monkeypatch.setitem(sys.modules, "torchvision", there)  # type: ignore[arg-type]
    with stand_in.present():
        assert sys.modules["torchvision"] is there
    assert sys.modules["torchvision"] is there


@pytest.mark.skipif(not ABSENT, reason="torchvision itself is installed")
def test_nothing_of_the_stand_in_is_left_behind() -> None:
    with stand_in.present():
        assert "torchvision.transforms" in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "torchvision"]


def test_transforms_do_what_their_names_say() -> None:
    image = picture()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    assert torch.equal(stand_in.ToTensor()(image), pixels)
    assert torch.equal(stand_in.ToTensor()(stand_in.CenterCrop(4)(image)), pixels[:, 1:5, 2:6])
    assert torch.equal(stand_in.ToTensor()(stand_in.RandomHorizontalFlip(1.0)(image)), pixels.flip(-1))
    assert torch.equal(stand_in.ToTensor()(stand_in.RandomHorizontalFlip(0.0)(image)), pixels)
    # The shorter side becomes 3, the longer keeps its proportion; (height, width) is taken as it stands.
    assert stand_in.Resize(3)(image).size == (4, 3)
    assert stand_in.Resize((5, 7))(image).size == (7, 5)
    both = stand_in.Compose([stand_in.CenterCrop(4), stand_in.Lambda(lambda one: one.size)])
    assert both(image) == (4, 4)


def test_a_grid_holds_every_image_with_gaps(tmp_path: Path) -> None:
    images = torch.rand(3, 1, 4, 5)
    grid = stand_in.make_grid(images, nrow=2)
    assert grid.shape == (1, 2 * (4 + 2) + 2, 2 * (5 + 2) + 2)
    assert torch.equal(grid[:, 2:6, 9:14], images[1])
    assert torch.equal(grid[:, 8:12, 2:7], images[2])
    stand_in.save_image(images, tmp_path / "grid.png", nrow=2)
    with Image.open(tmp_path / "grid.png") as written:
        assert np.array_equal(np.array(written), grid[0].mul(255).round().byte().numpy())


def test_each_epoch_holds_every_image_once_in_another_order() -> None:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    batches = Shuffled(images, 4, torch.Generator().manual_seed(0))
    epochs = [[batches.next() for _ in range(3)] for _ in range(2)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    first, second = (torch.cat(epoch).mul(255).round().flatten() for epoch in epochs)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)


def test_the_width_with_the_nearest_size_is_found() -> None:
    # A square layer of width w has w^2 weights and w biases.
    assert nearest_width(range(1, 50), lambda width: nn.Linear(width, width), 1000) == 31
    assert parameters(nn.Linear(31, 31)) == 992


def test_a_size_that_no_width_comes_near_is_refused() -> None:
    with pytest.raises(ValueError, match="within 5%"):
        nearest_width([10, 20], lambda width: nn.Linear(width, width), 200)


@pytest.mark.parametrize(("size", "halvings"), [(28, 2), (32, 5), (7, 0)])
def test_halvings_without_remainder_are_counted(size: int, halvings: int) -> None:
    assert exact_halvings(size) == halvings
