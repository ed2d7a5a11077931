from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from unfog.diffusion.nn import cost
from unfog.diffusion.nn.hybrid import Hybrid, HybridConfig

TINY = HybridConfig(2, 3, (8, 16), (1, 2), 2, dim=16, depth=2, heads=2, groups=4)


def test_a_fresh_transformer_leaves_the_features_as_they_are() -> None:
    features, embedding = torch.randn(2, 16, 5, 7), torch.randn(2, 16)
    assert torch.equal(Hybrid(TINY).middle(features, embedding, None, None), features)


def test_the_transformer_carries_a_cell_across_the_features() -> None:
    torch.manual_seed(0)
    middle = Hybrid(TINY).double().eval().middle
    for parameter in middle.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    features, embedding = torch.randn(1, 16, 12, 12).double(), torch.randn(1, 16).double()
    other = features.clone()
    other[..., 0, 0] += 1
    with torch.no_grad():
        change = middle(other, embedding, None, None) - middle(features, embedding, None, None)
    # Farther than any convolution of the levels reaches; float64 resolves 1e-16.
    assert change[..., -1, -1].abs().max() > 1e-6


def test_dropout_spares_the_levels() -> None:
    config = replace(TINY, dropout=0.5)
    assert config.levels.dropout == 0
    assert config.transformer.dropout == 0.5


def test_the_transformer_has_most_parameters_and_the_levels_most_pixels() -> None:
    config = HybridConfig(3, 3, (32, 64), (1, 1), 2, dim=256, depth=8, heads=4)
    with torch.device("meta"):
        network = Hybrid(config)
    assert cost.parameters(network.middle) > 0.8 * cost.parameters(network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ()}, "widths is empty"),
        ({"blocks": (1,)}, "equally long"),
        ({"groups": 3}, "does not suit 3 groups"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"halve_time": False}, "needs axes=3"),
        ({"time_features": 5}, "time_features is 5"),
    ],
)
def test_impossible_levels_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
