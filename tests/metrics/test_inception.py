"""The numbers here are those of the public port's own blocks (mseitzer/pytorch-fid), run on the same weights."""

import hashlib
import json

import pytest
import torch

from unfog.metrics.inception import CLASSES, DIM, SIZE, Alignment, Inception, prepared

NAMES_AND_SHAPES = "579c09ebb0c6f0f4c9f0a51099479eb353aaee1969adaaf05fbc5cefaa1f987e"
"""SHA-256 of the sorted list of [name, shape] of the port's parameters and running moments."""

PORT = (
    (0.289202, 1.273429, 0.014242, 0.809138, 0.006462, 0.599821, 0.199372, 0.477864),
    (0.286837, 1.27232, 0.011842, 0.814265, 0.007259, 0.601825, 0.189373, 0.465318),
)
"""Every 256th feature that the port gives to ``pictures()`` with the weights of ``drawn()``."""


def drawn(network):
    """Return weights that keep the size of the activations, drawn in the order of their names."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, value in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            made[name] = value
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.ndim > 1:
            noise *= (2 / value[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            noise = 1 + 0.1 * noise.abs()
        elif name.endswith("bn.weight"):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.1
        made[name] = noise.to(value.dtype)
    return made


def pictures():
    return torch.randint(0, 256, (2, 3, 40, 56), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def network():
    made = Inception()
    made.load_state_dict(drawn(made))
    return made.eval()


def test_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        entries = Inception().state_dict()
    listed = [[name, list(value.shape)] for name, value in sorted(entries.items()) if "num_batches" not in name]
    assert len(listed) == 472
    assert hashlib.sha256(json.dumps(listed).encode()).hexdigest() == NAMES_AND_SHAPES


@torch.inference_mode()
def test_the_features_are_those_of_the_public_port(network):
    features = network(prepared(pictures()))
    assert features.shape == (2, DIM)
    # Six digits are written down.
    torch.testing.assert_close(features[:, ::256], torch.tensor(PORT), rtol=0, atol=2e-6)


@torch.inference_mode()
def test_the_logits_leave_out_the_bias(network):
    features = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
    logits = network.logits(features)
    assert logits.shape == (2, CLASSES)
    torch.testing.assert_close(logits + network.fc.bias, network.fc(features))


def test_pixels_are_scaled_as_the_two_programs_do():
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 5, 5)
    black, white = prepared(ends)
    assert (black == -1).all()
    torch.testing.assert_close(white, torch.ones_like(white))
    black, white = prepared(ends, Alignment.TENSORFLOW)
    assert (black == -1).all()
    assert (white == 127 / 128).all()


def test_tensorflow_takes_point_i_at_i_times_the_ratio():
    ramp = torch.arange(0, 250, 10, dtype=torch.uint8).expand(1, 3, 4, 25)
    row = prepared(ramp, Alignment.TENSORFLOW)[0, 0, 0]
    places = (torch.arange(SIZE) * 25 / SIZE).clamp(max=24)
    # A linear ramp is interpolated to itself, up to the last pixel, which goes on.
    torch.testing.assert_close(row, (10 * places - 128) / 128, rtol=0, atol=1e-5)


def test_alignments_differ_by_the_shift_of_half_a_pixel():
    ramp = torch.arange(0, 250, 10, dtype=torch.uint8).expand(1, 3, 4, 25)
    row = prepared(ramp)[0, 0, 0]
    places = ((torch.arange(SIZE) + 0.5) * 25 / SIZE - 0.5).clamp(0, 24)
    torch.testing.assert_close(row, 2 * 10 * places / 255 - 1, rtol=0, atol=1e-5)


def test_pictures_are_made_smaller_without_antialiasing():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(2 * SIZE // 2).expand(1, 3, 2 * SIZE, 2 * SIZE)
    # Point i lies at 2 i: only black columns are met. Antialiasing would give grey.
    assert (prepared(stripes, Alignment.TENSORFLOW) == -1).all()


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)])
def test_other_pictures_are_refused(wrong):
    with pytest.raises(ValueError, match="uint8"):
        prepared(wrong)
