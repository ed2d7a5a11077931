"""Cross-attention: against diffusers' UNet2DConditionModel with the same weights, and the laws of its conditions."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from unfog.diffusion.nn import cost
from unfog.diffusion.nn.embed import Sinusoidal, sinusoids
from unfog.diffusion.nn.unet import UNet, UNetConfig
from unfog.diffusion.nn.unet_presets import stable_diffusion_1, stable_diffusion_2, stable_diffusion_xl

BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "embed": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
TRANSFORMER = {
    "norm1": ["norm1"],
    "attention.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attention.proj": ["attn1.to_out.0"],
    "norm2": ["norm2"],
    "cross.q": ["attn2.to_q"],
    "cross.kv": ["attn2.to_k", "attn2.to_v"],
    "cross.proj": ["attn2.to_out.0"],
    "norm3": ["norm3"],
    "perceptron.up": ["ff.net.0.proj"],
    "perceptron.down": ["ff.net.2"],
}
TOP = {
    "embedder.time_in": "time_embedding.linear_1",
    "embedder.time_out": "time_embedding.linear_2",
    "embedder.vector_in": "add_embedding.linear_1",
    "embedder.vector_out": "add_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
PUBLISHED: dict[str, dict[str, Any]] = {
    "1": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "XL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
OURS = {"1": stable_diffusion_1(), "2": stable_diffusion_2(), "XL": stable_diffusion_xl()}
# The same with a 20th of the width, fewer blocks and groups.
SMALL: dict[str, dict[str, Any]] = {
    "1": {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": 4, "cross_attention_dim": 12},
    "2": {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": (2, 4, 4, 4), "cross_attention_dim": 12},
    "XL": {
        "block_out_channels": (16, 32, 32),
        "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": 12,
        "transformer_layers_per_block": (1, 2, 3),
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 10 + 6 * 4,
    },
}
OURS_SMALL = {
    "1": replace(OURS["1"], widths=(16, 32, 32, 32), blocks=(1,) * 4, heads=4, groups=8, context_dim=12),
    "2": replace(OURS["2"], widths=(16, 32, 32, 32), blocks=(1,) * 4, head_dim=8, groups=8, context_dim=12),
    "XL": replace(
        OURS["XL"],
        widths=(16, 32, 32),
        blocks=(1,) * 3,
        head_dim=8,
        groups=8,
        context_dim=12,
        vector_dim=10 + 6 * 4,
        transformer_depth=(0, 2, 3),
        middle_depth=3,
    ),
}
names = pytest.mark.parametrize("name", PUBLISHED)

TINY = UNetConfig(
    in_channels=2,
    out_channels=2,
    widths=(8, 16),
    blocks=(1, 1),
    head_dim=4,
    groups=4,
    context_dim=6,
    transformer_depth=(0, 1),
    middle_depth=1,
)


def counterparts(path: str) -> list[str]:
    """Names in diffusers' network of the module that `path` is in ours."""
    if path in TOP:
        return [TOP[path]]
    side, level, *rest = path.split(".")
    if side == "middle":
        prefix, index = "mid_block", level
    elif rest[0] == "resample":
        return [f"{side}_blocks.{level}.{side}samplers.0.{rest[1]}"]
    else:
        prefix, index, rest = f"{side}_blocks.{level}", rest[1], rest[2:]
    match rest:
        case ["attention", "blocks", block, *inner]:
            targets = TRANSFORMER[".".join(inner)]
            return [f"{prefix}.attentions.{index}.transformer_blocks.{block}.{target}" for target in targets]
        case ["attention", part]:
            return [f"{prefix}.attentions.{index}.{part}"]
    return [f"{prefix}.resnets.{index}.{BLOCK[rest[0]]}"]


def small_pair(name: str) -> tuple[UNet, UNet2DConditionModel]:
    torch.manual_seed(0)
    settings = {**PUBLISHED[name], **SMALL[name]}
    reference = UNet2DConditionModel(sample_size=8, layers_per_block=1, norm_num_groups=8, **settings)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    network = UNet(OURS_SMALL[name])
    source = reference.state_dict()
    weights = {}
    for key, value in network.state_dict().items():
        path, kind = key.rsplit(".", 1)
        joined = torch.cat([source.pop(f"{target}.{kind}") for target in counterparts(path)])
        weights[key] = joined.flatten(1) if value.ndim == 2 and joined.ndim == 4 else joined
    assert not source, f"left unused: {list(source)}"
    network.load_state_dict(weights)
    return network.eval(), reference.eval()


@names
def test_stable_diffusion_has_as_many_parameters_as_the_published_network(name: str) -> None:
    with torch.device("meta"):
        expected = cost.parameters(UNet2DConditionModel(**PUBLISHED[name]))
        assert cost.parameters(UNet(OURS[name])) == expected


def test_stable_diffusion_has_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        counts = {name: cost.parameters(UNet(config)) for name, config in OURS.items()}
    assert counts == {"1": 859_520_964, "2": 865_910_724, "XL": 2_567_463_684}


@names
@pytest.mark.parametrize("masked", [False, True])
def test_a_small_stable_diffusion_equals_diffusers(name: str, masked: bool) -> None:
    network, reference = small_pair(name)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([7, 421]), torch.randn(2, 5, 12)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5]) if masked else None
    given, vector = {}, None
    if name == "XL":
        pooled, numbers = torch.randn(2, 10), torch.tensor([[64, 48, 0, 3, 64, 64], [32, 32, 5, 0, 64, 64]])
        given = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}
        vector = torch.cat([pooled, sinusoids(numbers.float(), 4, Sinusoidal()).flatten(1)], dim=1)
    with torch.no_grad():
        expected = reference(x, t, context, encoder_attention_mask=mask, **given).sample
        actual = network(x, t.float(), context=context, context_mask=mask, vector=vector)
    # Rounding of about 1e-7 an operation through some fifty layers.
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def build(config: UNetConfig) -> UNet:
    """A network whose zero-initialised layers are not zero, in float64."""
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.double().eval()


def given(tokens: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.zeros(3), torch.randn(3, tokens, 6, generator=generator, dtype=torch.float64)


def test_the_context_reaches_the_answer_of_its_own_example_only() -> None:
    network = build(TINY)
    x, c_noise, context = given()
    changed = context.clone()
    changed[1] += 1
    with torch.no_grad():
        moved = (network(x, c_noise, context=changed) - network(x, c_noise, context=context)).flatten(1).abs().amax(1)
    assert moved[1] > 1e-3
    assert moved[[0, 2]].max() < 1e-12


def test_a_token_that_is_masked_is_as_good_as_absent() -> None:
    network = build(TINY)
    x, c_noise, context = given()
    mask = torch.tensor([True, True, False, False]).expand(3, 4)
    with torch.no_grad():
        expected = network(x, c_noise, context=context[:, :2])
        torch.testing.assert_close(network(x, c_noise, context=context, context_mask=mask), expected)


def test_an_example_without_any_token_gets_a_finite_answer_and_finite_gradients() -> None:
    network = build(TINY).train()
    x, c_noise, context = given()
    mask = torch.tensor([[True] * 4, [False] * 4, [True] * 4])
    out = network(x, c_noise, context=context, context_mask=mask)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_order_of_tokens_does_not_matter() -> None:
    network = build(TINY)
    x, c_noise, context = given()
    with torch.no_grad():
        torch.testing.assert_close(network(x, c_noise, context=context.flip(1)), network(x, c_noise, context=context))


def test_recomputing_activations_does_not_change_gradients() -> None:
    x, c_noise, context = given()
    grads = []
    for checkpoint in (False, True):
        network = build(replace(TINY, attention_dropout=0.3, checkpoint=checkpoint)).train()
        torch.manual_seed(5)
        network(x, c_noise, context=context).square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))


def test_an_image_condition_reaches_the_answer() -> None:
    config = replace(TINY, image_channels=1)
    network = build(config)
    x, c_noise, context = given()
    image = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        first = network(x, c_noise, context=context, image=image)
        assert (network(x, c_noise, context=context, image=image + 1) - first).abs().max() > 1e-3


def test_an_image_condition_is_laid_behind_the_channels_of_the_noisy_image() -> None:
    plain, told = build(replace(TINY, in_channels=3)), build(replace(TINY, image_channels=1))
    told.load_state_dict(plain.state_dict())
    x, c_noise, context = given()
    image = x[:, :1] * 2
    with torch.no_grad():
        expected = plain(torch.cat([x, image], 1), c_noise, context=context)
        assert torch.equal(told(x, c_noise, context=context, image=image), expected)


@pytest.mark.parametrize(
    ("changes", "conditions", "message"),
    [
        ({}, {}, "needs context"),
        ({}, {"context": torch.zeros(3, 4, 5)}, "context has shape"),
        ({}, {"context": torch.zeros(3, 0, 6)}, "context has shape"),
        ({}, {"context": torch.zeros(3, 4, 6), "context_mask": torch.ones(3, 5).bool()}, "context_mask has shape"),
        ({}, {"context": torch.zeros(3, 4, 6), "image": torch.zeros(3, 1, 4, 4)}, "image was given"),
        ({"image_channels": 1}, {"context": torch.zeros(3, 4, 6)}, "needs image"),
        (
            {"image_channels": 1},
            {"context": torch.zeros(3, 4, 6), "image": torch.zeros(3, 1, 2, 2)},
            "image has shape",
        ),
        (
            {"context_dim": None, "transformer_depth": (), "middle_depth": 0},
            {"context": torch.zeros(3, 4, 6)},
            "reads none",
        ),
    ],
)
def test_conditions_that_do_not_suit_the_network_are_refused(
    changes: dict[str, Any], conditions: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(replace(TINY, **changes))(torch.zeros(3, 2, 4, 4), torch.zeros(3), **conditions)


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match="expected bool"):
        UNet(TINY)(torch.zeros(3, 2, 4, 4), torch.zeros(3), context=torch.zeros(3, 4, 6), context_mask=torch.ones(3, 4))
