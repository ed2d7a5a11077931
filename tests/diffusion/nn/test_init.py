import torch
from torch import nn

from unfog.diffusion.nn.init import xavier, zeroed


def test_xavier_bounds_weights_by_the_mean_of_the_fans() -> None:
    torch.manual_seed(0)
    layer = xavier(nn.Conv2d(40, 20, 3))
    bound = (6 / (9 * 40 + 9 * 20)) ** 0.5
    # 7200 uniform draws come within 1 percent of their bound.
    assert 0.99 * bound < layer.weight.abs().max() <= bound


def test_xavier_starts_without_bias() -> None:
    assert not xavier(nn.Linear(3, 4)).bias.any()


def test_a_zeroed_layer_answers_with_zeros() -> None:
    assert not zeroed(nn.Linear(3, 4))(torch.randn(5, 3)).any()
