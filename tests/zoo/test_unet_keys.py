"""DDPM is compared with diffusers' module; OpenAI's and pytorch_diffusion's networks with a restatement of what they
compute, written from the names of their tensors. What was compared with the original code are our networks (1.4e-6)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.zoo.peers import Shapes, distance, randomised
from torch import Tensor, nn

from unfog.diffusion.nn.embed import sinusoids
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.recipe.networks import build_network
from unfog.zoo.diffusers_config import unet_config
from unfog.zoo.keymap import from_published, to_published
from unfog.zoo.layouts import (
    DIFFUSERS_UNET,
    DIFFUSERS_UNET_OLD,
    OPENAI,
    OPENAI_PARTS_FIRST,
    PYTORCH_DIFFUSION,
    Layout,
)
from unfog.zoo.load import expected_shapes
from unfog.zoo.published import named

ROUNDING = 1e-5  # of float32, through some twenty layers of random weights

SIDE = 16
TINY = {"widths": (64, 64), "blocks": (1, 1), "attention": (1,)}
DDPM = replace(named("ddpm-cifar10").network, **TINY)
ADM = replace(named("adm-imagenet256").network, **TINY, head_dim=32, num_classes=5)
IDDPM = replace(named("iddpm-lsun-bedroom256").network, **TINY, heads=4)


def noisy() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, SIDE, SIDE), torch.tensor([3.0, 700.0])


def loaded(config: Any, layout: Layout, published: Mapping[str, Tensor]) -> nn.Module:
    network = build_network(config).eval()
    keymap = layout.keymap(config, network.state_dict(), SIDE)
    network.load_state_dict(from_published(keymap, published, network.state_dict()))
    return network


def diffusers_unet(**settings: Any) -> Any:
    from diffusers import UNet2DModel

    common = {
        "sample_size": SIDE,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (64, 64),
        "layers_per_block": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    }
    return UNet2DModel(**{**common, **settings})


@torch.no_grad()
def test_ddpm_answers_as_diffusers_module_does() -> None:
    peer, (x, t) = randomised(diffusers_unet()), noisy()
    ours = loaded(DDPM, DIFFUSERS_UNET, peer.state_dict())
    assert distance(ours(x, t), peer(x, t).sample) < ROUNDING


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"attention_head_dim": 16},
        {"downsample_padding": 1, "freq_shift": 0, "flip_sin_to_cos": True, "norm_eps": 1e-5},
        {"norm_num_groups": 16, "block_out_channels": (32, 64), "in_channels": 1, "out_channels": 1},
    ],
)
def test_any_plain_unet_of_diffusers_answers_alike(settings: dict[str, Any]) -> None:
    peer, (x, t) = randomised(diffusers_unet(**settings)), noisy()
    config, side = unet_config(peer.config)
    x = x[:, : config.in_channels]
    assert side == SIDE
    assert distance(loaded(config, DIFFUSERS_UNET, peer.state_dict())(x, t), peer(x, t).sample) < ROUNDING


def test_files_of_before_2023_have_other_names_for_the_same_tensors() -> None:
    network = build_network(DDPM)
    state = network.state_dict()
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    new = to_published(DIFFUSERS_UNET.keymap(DDPM, state, SIDE), state)
    old = to_published(DIFFUSERS_UNET_OLD.keymap(DDPM, state, SIDE), state)
    for name, tensor in new.items():
        for now, before in renamed.items():
            name = name.replace(f".{now}.", f".{before}.")
        assert torch.equal(old.pop(name), tensor)
    assert not old


def group_norm(h: Tensor, state: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps)


def conv(h: Tensor, state: Mapping[str, Tensor], name: str, **settings: int) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(
        h, weight, state[f"{name}.bias"], padding=settings.pop("padding", weight.shape[-1] // 2), **settings
    )


def linear(h: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])


class OpenAI:
    """What guided-diffusion and improved-diffusion compute with a ``state_dict``."""

    def __init__(self, state: Mapping[str, Tensor], heads: int, parts_first: bool, scale_shift: bool) -> None:
        self.state, self.heads, self.parts_first, self.scale_shift = state, heads, parts_first, scale_shift

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        state = self.state
        half = state["time_embed.0.weight"].shape[1] // 2
        phase = t[:, None] * torch.exp(-torch.arange(half) * (torch.log(torch.tensor(1e4)) / half))
        emb = F.silu(linear(torch.cat([phase.cos(), phase.sin()], 1), state, "time_embed.0"))
        emb = linear(emb, state, "time_embed.2")
        if label is not None:
            emb = emb + state["label_emb.weight"][label]
        h, skips = x, []
        for i in range(self.count("input_blocks")):
            h = self.stage(f"input_blocks.{i}", h, emb, down=True)
            skips.append(h)
        h = self.stage("middle_block", h, emb, down=False)
        for i in range(self.count("output_blocks")):
            h = self.stage(f"output_blocks.{i}", torch.cat([h, skips.pop()], 1), emb, down=False)
        return conv(F.silu(group_norm(h, state, "out.0", 1e-5)), state, "out.2")

    def count(self, part: str) -> int:
        return len({name.split(".")[1] for name in self.state if name.startswith(f"{part}.")})

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def stage(self, name: str, h: Tensor, emb: Tensor, *, down: bool) -> Tensor:
        for j in range(3):
            layer = f"{name}.{j}"
            if self.has(layer):
                h = conv(h, self.state, layer)
            elif self.has(f"{layer}.op"):
                h = conv(h, self.state, f"{layer}.op", stride=2)
            elif self.has(f"{layer}.conv"):
                h = conv(F.interpolate(h, scale_factor=2.0), self.state, f"{layer}.conv")
            elif self.has(f"{layer}.qkv"):
                h = self.attention(layer, h)
            elif self.has(f"{layer}.in_layers.0"):
                # A block that resizes: the only one of its stage going down, the last of several going up.
                resizes = self.resizes(name, j, down=down)
                h = self.residual(layer, h, emb, (0.5 if down else 2.0) if resizes else 1.0)
        return h

    def resizes(self, name: str, j: int, *, down: bool) -> bool:
        if down:
            return name == "input_blocks.2" and not self.has("input_blocks.2.0.op")  # behind the one block of level 0
        return name.startswith("output") and j > 0

    def residual(self, name: str, x: Tensor, emb: Tensor, scale: float) -> Tensor:
        h = F.silu(group_norm(x, self.state, f"{name}.in_layers.0", 1e-5))
        if scale == 0.5:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif scale == 2.0:
            h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
        h = conv(h, self.state, f"{name}.in_layers.2")
        emb = linear(F.silu(emb), self.state, f"{name}.emb_layers.1")[:, :, None, None]
        if self.scale_shift:
            gain, shift = emb.chunk(2, 1)
            h = group_norm(h, self.state, f"{name}.out_layers.0", 1e-5) * (1 + gain) + shift
        else:
            h = group_norm(h + emb, self.state, f"{name}.out_layers.0", 1e-5)
        h = conv(F.silu(h), self.state, f"{name}.out_layers.3")
        return h + (conv(x, self.state, f"{name}.skip_connection") if self.has(f"{name}.skip_connection") else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        norm = group_norm(x, self.state, f"{name}.norm", 1e-5).flatten(2)
        qkv = F.conv1d(norm, self.state[f"{name}.qkv.weight"], self.state[f"{name}.qkv.bias"])
        if self.parts_first:
            q, k, v = qkv.view(batch, 3, self.heads, channels // self.heads, -1).unbind(1)
        else:
            q, k, v = qkv.view(batch, self.heads, 3, channels // self.heads, -1).unbind(2)
        weight = torch.softmax(q.transpose(2, 3) @ k / (channels // self.heads) ** 0.5, dim=-1)
        mixed = (v @ weight.transpose(2, 3)).flatten(1, 2)
        mixed = F.conv1d(mixed, self.state[f"{name}.proj_out.weight"], self.state[f"{name}.proj_out.bias"])
        return x + mixed.view_as(x)


def openai_state(config: UNetConfig, layout: Layout) -> dict[str, Tensor]:
    """Random tensors under OpenAI's names, in its shapes."""
    network = build_network(config)
    shapes = to_published(layout.keymap(config, network.state_dict(), SIDE), network.state_dict())
    return {name: 0.2 * torch.randn(tensor.shape) for name, tensor in shapes.items()}


@torch.no_grad()
@pytest.mark.parametrize("layout", [OPENAI, OPENAI_PARTS_FIRST], ids=["heads first", "parts first"])
def test_adm_answers_as_the_original_does(layout: Layout) -> None:
    state, (x, t), label = openai_state(ADM, layout), noisy(), torch.tensor([1, 4])
    theirs = OpenAI(state, 2, parts_first=layout is OPENAI_PARTS_FIRST, scale_shift=True)(x, t, label)
    assert distance(loaded(ADM, layout, state)(x, t, label=label), theirs) < ROUNDING


@torch.no_grad()
def test_improved_ddpm_answers_as_the_original_does() -> None:
    state, (x, t) = openai_state(IDDPM, OPENAI), noisy()
    theirs = OpenAI(state, 4, parts_first=False, scale_shift=False)(x, t)
    assert distance(loaded(IDDPM, OPENAI, state)(x, t), theirs) < ROUNDING


@torch.no_grad()
def test_the_two_orders_of_attention_are_not_the_same() -> None:
    state, (x, t) = openai_state(ADM, OPENAI), noisy()
    one, other = (loaded(ADM, layout, state)(x, t) for layout in (OPENAI, OPENAI_PARTS_FIRST))
    assert distance(one, other) > 100 * ROUNDING


@torch.no_grad()
def test_pytorch_diffusion_and_diffusers_keep_the_same_network() -> None:
    """Its tensors are those of diffusers, convolutions of one point being matrices there."""
    network = randomised(build_network(DDPM))
    state = network.state_dict()
    theirs = to_published(PYTORCH_DIFFUSION.keymap(DDPM, state, SIDE), state)
    assert theirs["mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert torch.equal(theirs["mid.attn_1.k.weight"][:, :, 0, 0], state["middle.0.attention.qkv.weight"][64:128])
    assert torch.equal(theirs["up.0.block.1.nin_shortcut.weight"], state["up.1.blocks.1.skip.weight"])
    assert torch.equal(theirs["up.1.upsample.conv.bias"], state["up.0.resample.conv.bias"])
    x, t = noisy()
    assert torch.equal(loaded(DDPM, PYTORCH_DIFFUSION, theirs)(x, t), network(x, t))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("ddpm-cifar10", 2),
        ("ddpm-celebahq256", 2),
        *((f"adm-imagenet{side}", 0) for side in (64, 128, 256, 512)),
        *((f"iddpm-{name}", 0) for name in ("cifar10", "imagenet64", "imagenet64-cond", "lsun-bedroom256")),
    ],
)
def test_full_size_files_have_the_names_and_shapes_of_the_original(
    name: str, layout: int, published_shapes: Mapping[str, Shapes]
) -> None:
    assert expected_shapes(named(name), layout) == published_shapes[name]


def test_the_unconditional_adm_lacks_the_classes_only(published_shapes: Mapping[str, Shapes]) -> None:
    conditional = dict(published_shapes["adm-imagenet256"])
    assert conditional.pop("label_emb.weight") == (1000, 1024)
    assert expected_shapes(named("adm-imagenet256-uncond")) == conditional


@pytest.mark.parametrize("name", ["ddpm-cifar10", "ddpm-celebahq256"])
def test_full_size_folders_of_diffusers_have_the_names_and_shapes_of_its_module(name: str) -> None:
    model = named(name)
    config = model.network
    assert isinstance(config, UNetConfig)
    levels = range(len(config.widths))
    with torch.device("meta"):
        peer = diffusers_unet(
            down_block_types=["AttnDownBlock2D" if i in config.attention else "DownBlock2D" for i in levels],
            up_block_types=["AttnUpBlock2D" if i in config.attention else "UpBlock2D" for i in reversed(levels)],
            block_out_channels=config.widths,
            layers_per_block=2,
        )
    assert expected_shapes(model, 0) == {key: tuple(value.shape) for key, value in peer.state_dict().items()}


def test_improved_ddpm_is_told_4000_levels_as_if_there_were_1000() -> None:
    time = named("iddpm-cifar10").network.time
    index = torch.tensor([0.0, 400.0, 3999.0])
    plain = named("iddpm-imagenet64-cond").network.time  # trained without
    assert torch.equal(sinusoids(index, 8, time), sinusoids(index / 4, 8, plain))
