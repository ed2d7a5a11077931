import torch

from unfog.sampling.codec.codec import Identity


def test_pixels_are_diffused_as_they_are() -> None:
    x = torch.rand(2, 1, 3, 3)
    assert torch.equal(Identity().decode(Identity().encode(x)), x)
