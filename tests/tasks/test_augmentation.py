import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import EDM
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import VarianceExploding
from unfog.diffusion.times import LogNormal
from unfog.diffusion.weighting import EDMWeight
from unfog.sampling.conditioning.conditioner import Label
from unfog.tasks.augmentation import NUMBERS, Augmentation
from unfog.tasks.denoising import Denoising

NOTHING = Augmentation(0.0, mirror=False)
EVERYTHING = Augmentation(1.0)
STILL = {"mirror": False, "overturn": False, "scale": 0.0, "turn": 0.0, "stretch": 0.0, "shift": 0.0}


def keys(count: int) -> Rng:
    return Rng.of(5, torch.arange(count))


def noise(count: int, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def blob(x: float, y: float, height: int, width: int) -> Tensor:
    """A bright, smooth spot on black; the picture's middle is the origin, half its width 1, y going down."""
    across = (torch.arange(width) + 0.5) * 2 / width - 1
    down = ((torch.arange(height) + 0.5) * 2 / height - 1) * height / width
    return torch.exp(-((across[None, :] - x) ** 2 + (down[:, None] - y) ** 2) / (2 * 0.08**2))[None, None]


def place(picture: Tensor, x: float, y: float) -> tuple[float, float]:
    """Centre of gravity around a point in the same units: mirrored copies of the spot may come in at the borders."""
    height, width = picture.shape[-2:]
    across = (torch.arange(width) + 0.5) * 2 / width - 1
    down = ((torch.arange(height) + 0.5) * 2 / height - 1) * height / width
    near = (across[None, :] - x) ** 2 + (down[:, None] - y) ** 2 < 0.3**2
    weight = picture[0] * near
    return float((weight * across).sum() / weight.sum()), float((weight * down[:, None]).sum() / weight.sum())


def expected(change: Augmentation, told: list[float], x: float, y: float, aspect: float) -> tuple[float, float]:
    """Where a point goes, by complex numbers."""
    mirrored, overturned, scale, cos, sin, along, across, right, down = told
    z = complex(x * (1 - 2 * mirrored), y * (1 - 2 * overturned))
    amount = math.hypot(along, across)
    if amount > 0:
        axis, by = complex(along, across) / amount, 2 ** (change.stretch * amount)
        part = (z * axis.conjugate()).real
        z = part * by * axis + (z - part * axis) / by
    # The vertical axis goes down: a positive turn is to the left.
    z *= 2 ** (change.scale * scale) * complex(cos + 1, -sin)
    return z.real + 2 * change.shift * right, z.imag + 2 * change.shift * down * aspect


def test_a_picture_to_which_nothing_is_done_keeps_its_bits() -> None:
    x0 = noise(6)
    same, told = NOTHING(x0, keys(6))
    assert torch.equal(same, x0)
    assert torch.equal(told, torch.zeros(6, NUMBERS))
    some, told = Augmentation(0.3, mirror=False)(noise(200), keys(200))
    untouched = (told == 0).all(1)
    assert 0.05 < untouched.float().mean() < 0.4  # 0.7^4 times 0.85
    assert torch.equal(some[untouched], noise(200)[untouched])


def test_half_of_the_pictures_are_mirrored_and_few_turned_upside_down() -> None:
    x0 = noise(400)
    flips = Augmentation(**{**STILL, "probability": 0.5, "mirror": True, "overturn": True})
    changed, told = flips(x0, keys(400))
    assert set(told[:, 2:].unique().tolist()) == {0.0}
    assert 0.4 < told[:, 0].mean() < 0.6
    assert 0.15 < told[:, 1].mean() < 0.35
    for before, after, (mirrored, overturned) in zip(x0, changed, told[:, :2].tolist(), strict=True):
        whole = before.flip(2) if mirrored else before
        assert torch.equal(after, whole.flip(1) if overturned else whole)


@pytest.mark.parametrize("only", ["mirror", "overturn", "scale", "turn", "stretch", "shift", "all"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_every_point_goes_where_the_network_is_told(only: str, size: tuple[int, int]) -> None:
    usual = {"mirror": True, "overturn": True, "scale": 0.2, "turn": 1.0, "stretch": 0.2, "shift": 0.05}
    settings = usual if only == "all" else {**STILL, only: usual[only]}
    change = Augmentation(1.0, **settings)
    count, aspect = 24, size[0] / size[1]
    changed, told = change(blob(0.2, -0.12, *size).expand(count, -1, -1, -1), keys(count))
    assert told.any()
    for picture, numbers in zip(changed, told.tolist(), strict=True):
        x, y = expected(change, numbers, 0.2, -0.12, aspect)
        if abs(x) < 0.7 and abs(y) < 0.7 * aspect:  # not at the border
            assert place(picture, x, y) == pytest.approx((x, y), abs=0.006)


def test_a_picture_is_changed_by_its_own_key_alone() -> None:
    x0 = noise(12, 12, 20)
    whole, told = EVERYTHING(x0, keys(12))
    part, told_part = EVERYTHING(x0[4:9], keys(12)[4:9])
    assert torch.equal(part, whole[4:9])
    assert torch.equal(told_part, told[4:9])


def test_no_pixel_leaves_the_range_of_its_picture() -> None:
    x0 = noise(32) * torch.linspace(0.1, 1, 32)[:, None, None, None]
    changed, _ = EVERYTHING(x0, keys(32))
    assert (changed.amax((1, 2, 3)) <= x0.amax((1, 2, 3))).all()
    assert (changed.amin((1, 2, 3)) >= x0.amin((1, 2, 3))).all()


def test_changes_have_the_spread_that_is_set() -> None:
    _, told = Augmentation(1.0, turn=0.5)(noise(1, 2, 2).expand(4000, -1, -1, -1), keys(4000))
    values = told.double().numpy()
    # Standard errors: 1 / sqrt(2 * 4000) = 0.011 of a deviation, of two numbers together 0.008.
    assert np.std(values[:, [2, 7, 8]], axis=0) == pytest.approx([1, 1, 1], abs=0.05)
    assert np.sqrt(np.square(values[:, 5:7]).sum(1).mean()) == pytest.approx(1, abs=0.05)
    angles = np.arctan2(values[:, 4], values[:, 3] + 1)
    assert np.abs(angles).max() < math.pi / 2
    assert np.abs(angles).mean() == pytest.approx(math.pi / 4, abs=0.03)


class Told(nn.Module):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.seen.append(cond)
        return self.gain * x


def test_the_network_is_told_in_training_and_not_when_it_is_measured() -> None:
    denoiser = NetworkDenoiser(Told(), Gaussian(VarianceExploding()), EDM())
    conditioner = Label(3, 0.0)
    task = Denoising(denoiser, conditioner, LogNormal(), EDMWeight(), augmentation=EVERYTHING)
    batch = Batch(
        {"x0": noise(5), "label": torch.arange(5) % 3},
        torch.arange(5),
        torch.zeros(5, dtype=torch.int64),
        torch.arange(5),
    )
    task.loss(batch, "model", rng=keys(5))
    assert isinstance(denoiser.network, Told)
    assert torch.equal(denoiser.network.seen[0]["augmentation"], EVERYTHING(noise(5), keys(5))[1])
    task.errors(noise(5), torch.full((5,), 0.5), conditioner({"label": torch.arange(5) % 3}), rng=keys(5))
    assert set(denoiser.network.seen[1]) == {"label"}


def test_what_are_no_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pictures \(B, C, H, W\) to augment, got examples of shape \(3, 8\)"):
        EVERYTHING(torch.zeros(2, 3, 8), keys(2))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"probability": 1.5}, "a probability in"), ({"turn": -0.1}, "a turn in"), ({"shift": math.nan}, "a shift of")],
)
def test_settings_out_of_their_range_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augmentation(**wrong)
