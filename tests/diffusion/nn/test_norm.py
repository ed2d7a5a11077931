import torch

from unfog.diffusion.nn.norm import modulate


def test_no_modulation_is_the_identity() -> None:
    h, zero = torch.randn(2, 3, 4), torch.zeros(())
    assert torch.equal(modulate(h, scale=zero, shift=zero), h)


def test_normalised_features_take_the_given_mean_and_spread() -> None:
    h = torch.nn.functional.layer_norm(torch.randn(5, 64, dtype=torch.float64), (64,), eps=0.0)
    out = modulate(h, scale=torch.tensor(0.5), shift=torch.tensor(-2.0))
    torch.testing.assert_close(out.mean(dim=1), torch.full((5,), -2.0, dtype=torch.float64))
    torch.testing.assert_close(out.std(dim=1, correction=0), torch.full((5,), 1.5, dtype=torch.float64))
