import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.nn.uncertainty import WithUncertainty


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * c_noise[:, None] + cond["label"][:, None]
        return out


def made() -> WithUncertainty:
    torch.manual_seed(0)
    return WithUncertainty(Network(), 64)


def test_the_network_answers_as_it_did() -> None:
    both, x, level, label = made(), torch.randn(4, 3), torch.rand(4), torch.arange(4)
    assert torch.equal(both(x, level, label=label), both.network(x, level, label=label))


def test_nothing_is_known_at_first() -> None:
    assert torch.equal(made().uncertainty(torch.linspace(-30, 30, 9)), torch.zeros(9))


def test_levels_beyond_the_limit_and_pure_noise_are_finite() -> None:
    both = made()
    nn.init.normal_(both.out.weight)
    ends = both.uncertainty(torch.tensor([torch.inf, 25.0, -25.0, -torch.inf]))
    assert ends.isfinite().all()
    assert ends[0] == ends[1] != ends[2] == ends[3]


def test_autocast_leaves_it_in_full_precision() -> None:
    both = made()
    nn.init.normal_(both.out.weight)
    levels = torch.linspace(-10, 10, 50)
    expected = both.uncertainty(levels)
    with torch.autocast("cpu", torch.bfloat16):
        found = both.uncertainty(levels)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)


def test_what_is_learned_is_the_logarithm_of_the_expected_loss() -> None:
    both = made()
    levels = torch.linspace(-8, 8, 257).repeat(2)
    expected = 1.0 + torch.sin(levels / 3)
    loss = expected.exp() * torch.tensor([0.4, 1.6]).repeat_interleave(257)
    optimizer = torch.optim.LBFGS(both.out.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def total() -> Tensor:
        optimizer.zero_grad()
        u = both.uncertainty(levels)
        mean = ((-u).exp() * loss + u).mean()
        mean.backward()
        return mean

    optimizer.step(total)
    # 64 features form a smooth function but for a few per cent.
    assert (both.uncertainty(levels) - expected).abs().max() < 0.05


def test_features_are_needed() -> None:
    with pytest.raises(ValueError, match="features is 0; it must be at least 1"):
        WithUncertainty(Network(), 0)
