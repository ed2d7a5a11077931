import numpy as np
import pytest
import torch

from unfog.data.batch import Batch
from unfog.data.dataset import ArrayDataset, to_float
from unfog.diffusion.random import Rng
from unfog.evaluation.classifier import (
    Affine,
    Budget,
    FeatureNetwork,
    Shift,
    build,
    fit,
    logits,
    stem_stride_for,
    subset,
    to_pixels,
)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Repeated:
    """The same few examples, over and over."""

    def __init__(self, x0, label):
        self.x0, self.label = x0, label

    def take(self, start, count):
        positions = torch.arange(start, start + count)
        ids = positions % len(self.x0)
        return Batch({"x0": self.x0[ids], "label": self.label[ids]}, ids, positions // len(self.x0), positions)


def bars(count):
    """Three classes of 8x8 images: left half, right half or upper half bright, with noise."""
    label = torch.arange(count) % 3
    x0 = noise(count, 1, 8, 8) * 0.3 - 0.5
    x0[label == 0, :, :, :4] += 1
    x0[label == 1, :, :, 4:] += 1
    x0[label == 2, :, :4, :] += 1
    return x0, label


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (9, 13)), (2, (28, 28)), (3, (8, 130))])
def test_images_of_any_size_and_channels_are_accepted(channels, size):
    network = FeatureNetwork(channels, 5, width=2, stem_stride=stem_stride_for(size)).eval()
    x = noise(2, channels, *size)
    assert network(x).shape == (2, 5)
    assert network.features(x).shape == (2, 8)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (17, 9), (28, 28), (200, 130)])
def test_the_first_convolution_leaves_at_most_sixteen_pixels_and_more_than_eight_if_there_were(size):
    stride = stem_stride_for(size)
    after = -(-max(size) // stride)
    assert after <= 16
    assert after > 8 or stride == 1


@pytest.mark.parametrize("size", [(7, 8), (20, 5), (30,)])
def test_images_that_are_too_small_are_refused(size):
    with pytest.raises(ValueError, match="8 x 8"):
        stem_stride_for(size)


def test_fresh_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = (build(1, 3, (8, 8), Budget(width=2), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.stem.weight, second.stem.weight)
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_separable_classes_are_learned_completely():
    x0, label = bars(30)
    network = build(1, 3, (8, 8), Budget(width=4), seed=0)
    fit(network, Repeated(x0, label), 3, 30, Budget(batch_size=15, width=4, lr=1e-2), Shift(), seed=0)
    assert torch.equal(logits(network, x0).argmax(1), label)


def test_the_statistics_of_a_fitted_network_are_those_of_its_final_weights():
    x0, label = bars(12)
    network = build(1, 3, (8, 8), Budget(width=2), seed=0)
    before = torch.random.get_rng_state()
    fit(network, Repeated(x0, label), 3, 2, Budget(batch_size=12, width=2), lambda x, rng: x, seed=0)
    with torch.no_grad():
        inputs = network.stem(x0)
    # A batch is the whole set here; means of float32 numbers of order one.
    assert torch.allclose(network.stages[0].norm1.running_mean, inputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_that_was_fitted_answers_each_image_by_itself():
    x0, label = bars(12)
    network = build(1, 3, (8, 8), Budget(width=2), seed=0)
    fit(network, Repeated(x0, label), 3, 3, Budget(batch_size=6, width=2), Shift(), seed=0)
    # float32 convolutions sum in another order at another batch size.
    assert torch.allclose(logits(network, x0)[4:5], logits(network, x0[4:5]), atol=1e-5)


def test_a_shift_moves_by_whole_pixels_within_reach_and_repeats_the_border():
    x = noise(60, 2, 8, 11)
    moved = Shift(2 / 8)(x, Rng.of(0, 60))
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2), mode="replicate")
    found = set()
    for i in range(60):
        matches = [
            (dy, dx)
            for dy in range(5)
            for dx in range(7)
            if torch.equal(moved[i], padded[i, :, dy : dy + 8, dx : dx + 11])
        ]
        assert len(matches) == 1
        found.update(matches)
    # 60 draws of 35 moves: fewer than 20 different ones would be a generator that hardly moves.
    assert len(found) >= 20


@pytest.mark.parametrize("augment", [Shift(0.2), Affine()])
def test_an_augmentation_of_an_example_does_not_depend_on_its_neighbours(augment):
    x, rng = noise(6, 1, 9, 9), Rng.of(3, 6, step=2)
    assert torch.equal(augment(x, rng)[2:4], augment(x[2:4], rng[2:4]))


def test_an_affine_change_of_nothing_is_the_identity():
    x = noise(4, 2, 9, 12)
    # Interpolation weights of 0 and 1 up to float32 rounding of the grid.
    assert torch.allclose(Affine(0.0, 0.0, 0.0)(x, Rng.of(0, 4)), x, atol=1e-4)


def test_turning_leaves_a_round_blob_as_it_is_on_images_that_are_not_square():
    y, x = torch.meshgrid(torch.arange(24.0) - 11.5, torch.arange(40.0) - 19.5, indexing="ij")
    blob = torch.exp(-(x * x + y * y) / 32).expand(8, 1, 24, 40)
    turned = Affine(degrees=90.0, scale=0.0, shift=0.0)(blob, Rng.of(0, 8))
    # Linear interpolation of a Gaussian of width 4 errs by at most 1 / (8 * 16) times the curvature of two axes.
    assert (turned - blob).abs().max() < 0.02


def test_a_scale_of_e_to_the_s_shrinks_or_widens_by_that_factor():
    x = torch.linspace(-1, 1, 33)[None, None, None].expand(40, 1, 33, 33)
    scaled = Affine(degrees=0.0, scale=0.5, shift=0.0)(x, Rng.of(0, 40))
    # A linear ramp stays linear about the centre, at a slope between exp(-0.5) and exp(0.5) of its own.
    slope = (scaled[:, 0, 16, 17] - scaled[:, 0, 16, 15]) / (x[0, 0, 0, 17] - x[0, 0, 0, 15])
    assert torch.all((slope.log().abs() <= 0.5 + 1e-5) & (scaled[:, 0, 16, 16].abs() < 1e-5))
    assert slope.log().min() < -0.3
    assert slope.log().max() > 0.3


def test_pixels_of_floats_are_those_the_data_set_would_hold():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(to_float(pixels)), pixels)
    assert torch.equal(to_pixels(pixels), pixels)


@pytest.mark.parametrize("wrong", [1.5, -3.0, float("nan")])
def test_floats_outside_the_range_are_refused(wrong):
    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 3, 3] = wrong
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        to_pixels(x)


def test_a_subset_holds_the_chosen_examples_in_the_chosen_order():
    pixels = np.arange(5 * 64, dtype=np.uint64).reshape(5, 1, 8, 8).astype(np.uint8)
    whole = ArrayDataset(pixels, np.array([0, 1, 2, 1, 0]), classes=("a", "b", "c"))
    part = subset(whole, torch.tensor([3, 0]))
    values, expected = part.gather(torch.arange(2)), whole.gather(torch.tensor([3, 0]))
    assert torch.equal(values["x0"], expected["x0"])
    assert values["label"].tolist() == [1, 0]
    assert part.info.classes == ("a", "b", "c")


def test_steps_end_with_the_epochs_or_the_steps_whichever_comes_first():
    budget = Budget(steps=50, epochs=4, batch_size=10)
    assert (budget.steps_for(25), budget.steps_for(1000)) == (10, 50)
