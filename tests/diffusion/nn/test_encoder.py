from dataclasses import replace

import pytest
import torch
from torch import nn

from unfog.diffusion.nn.encoder import (
    AttentionPool,
    Encoder,
    EncoderConfig,
    adm_classifier64,
    adm_classifier128,
    adm_classifier256,
    adm_classifier512,
)

SMALL = EncoderConfig(
    in_channels=1, classes=5, size=(8, 8), widths=(8, 16), blocks=(1, 1), attention=(1,), head_dim=8, groups=4
)


def encoder(config: EncoderConfig = SMALL) -> Encoder:
    torch.manual_seed(0)
    network = Encoder(config)
    # A fresh one answers with zeros, which tell nothing.
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (adm_classifier64(), 65_438_568),
        (adm_classifier128(), 42_568_040),
        (adm_classifier256(), 54_096_360),
        (adm_classifier512(), 54_448_360),
    ],
)
def test_published_classifiers_have_their_number_of_parameters(config: EncoderConfig, count: int) -> None:
    # Counted on the meta device from the published code with the published flags.
    with torch.device("meta"):
        network = Encoder(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert config.grid == (8, 8)


def test_a_fresh_encoder_answers_with_zeros() -> None:
    network = Encoder(SMALL)
    assert torch.equal(network(torch.randn(3, 1, 8, 8), torch.tensor([1.0, 500.0, 999.0])), torch.zeros(3, 5))


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, size=(7, 10)),
        replace(SMALL, patch=2),
        replace(SMALL, blocks=(1, 0)),
        replace(SMALL, scale_shift=False),
        replace(SMALL, embed_dim=12, time_features=6),
    ],
)
def test_an_image_is_answered_alike_whatever_its_batch(config: EncoderConfig) -> None:
    network, x = encoder(config), torch.randn(3, 1, *config.size)
    c_noise = torch.tensor([1.0, 500.0, 999.0])
    whole = network(x, c_noise)
    assert whole.shape == (3, 5)
    # float32 sums in another order.
    torch.testing.assert_close(network(x[1:2], c_noise[1]), whole[1:2], rtol=1e-4, atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_the_noise_level_and_the_place_of_pixels_count() -> None:
    network, x = encoder(), torch.randn(1, 1, 8, 8)
    answer = network(x, torch.tensor(10.0))
    assert (network(x, torch.tensor(900.0)) - answer).abs().max() > 1e-3
    assert (network(x.flip(-1), torch.tensor(10.0)) - answer).abs().max() > 1e-3


def test_recomputing_activations_changes_no_gradient() -> None:
    x, gradients = torch.randn(2, 1, 8, 8), []
    for checkpoint in (False, True):
        network = encoder(replace(SMALL, checkpoint=checkpoint))
        network(x, torch.tensor(10.0)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def test_the_pool_attends_from_the_mean() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, 3, cells=4, head_dim=4)
    nn.init.normal_(pool.proj.weight)
    x = torch.randn(2, 8, 2, 2)
    tokens = torch.cat([x.mean((2, 3))[:, None], x.flatten(2).mT], dim=1) + pool.position
    q, k, v = pool.qkv(tokens).chunk(3, dim=-1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        weights = (q[:, :1, part] @ k[..., part].mT / 2.0).softmax(-1)
        heads.append((weights @ v[..., part])[:, 0])
    torch.testing.assert_close(pool(x), pool.proj(torch.cat(heads, dim=1)))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 9, 8\); expected \(B, 1, \*\(8, 8\)\)"):
        Encoder(SMALL)(torch.zeros(2, 1, 9, 8), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"size": (8, 0)}, r"size is \(8, 0\)"),
        ({"widths": (8, 10), "head_dim": 2}, "width 10 does not suit 4 groups"),
        ({"head_dim": 5}, "head_dim 5 does not divide"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **change)
