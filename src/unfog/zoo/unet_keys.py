"""What published U-Nets call their tensors: DDPM's in two layouts, and OpenAI's (ADM and Improved DDPM).

Sources of the names:
    diffusers' ``UNet2DModel``, whose files of before 2023 call the parts of attention ``query``, ``key``, ``value`` and
    ``proj_attn``; github.com/pesser/pytorch_diffusion, the weights of Ho, Jain, Abbeel 2020 converted for PyTorch;
    github.com/openai/guided-diffusion and improved-diffusion, which share one layout.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.zoo.keymap import Entry, Form, KeyMap, as_it_is, by_head, entry, layer, pointwise, stacked, without_null


class HeadOrder(Enum):
    """How OpenAI's files keep queries, keys and values."""

    HEADS_FIRST = "heads first"
    """Head by head, each with its queries, keys and values: what most of them have."""

    PARTS_FIRST = "parts first"
    """All queries, all keys, all values: ``use_new_attention_order``, which the 64x64 model of ADM has."""


class Site(NamedTuple):
    """A residual block of a U-Net, with or without attention.

    Attributes:
        ours: its name.
        level: counted from the finest.
        number: within the level and direction.
    """

    ours: str
    level: int
    number: int


@dataclass(frozen=True)
class BlockNames:
    """What the layers of a residual block and of attention are called within their block.

    Attributes:
        residual: by our names.
        norm: of attention.
        qkv: the layers of queries, keys and values: one or three.
        proj: the layer behind attention.
    """

    residual: Mapping[str, str]
    norm: str
    qkv: tuple[str, ...]
    proj: str


_DDPM = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_DIFFUSERS_RESIDUAL = {**_DDPM, "embed": "time_emb_proj", "skip": "conv_shortcut"}
DIFFUSERS = BlockNames(_DIFFUSERS_RESIDUAL, "group_norm", ("to_q", "to_k", "to_v"), "to_out.0")
DIFFUSERS_OLD = BlockNames(_DIFFUSERS_RESIDUAL, "group_norm", ("query", "key", "value"), "proj_attn")
PYTORCH_DIFFUSION = BlockNames(
    {**_DDPM, "embed": "temb_proj", "skip": "nin_shortcut"}, "norm", ("q", "k", "v"), "proj_out"
)
OPENAI = BlockNames(
    {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "embed": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
    },
    "norm",
    ("qkv",),
    "proj_out",
)


def down_sites(config: UNetConfig) -> list[list[Site]]:
    """Return the blocks on the way down, level by level from the finest."""
    return [[Site(f"down.{i}.blocks.{j}", i, j) for j in range(count)] for i, count in enumerate(config.blocks)]


def up_sites(config: UNetConfig) -> list[list[Site]]:
    """Return the blocks on the way up, level by level from the coarsest."""
    counts = list(enumerate(config.blocks))[::-1]
    return [[Site(f"up.{k}.blocks.{j}", level, j) for j in range(count + 1)] for k, (level, count) in enumerate(counts)]


def residual(ours: str, theirs: str, names: BlockNames, network: Mapping[str, Tensor]) -> Iterator[Entry]:
    """Yield the entries of a residual block, without its attention."""
    for mine, name in names.residual.items():
        if f"{ours}.{mine}.weight" in network:
            yield from layer(f"{ours}.{mine}", f"{theirs}.{name}")


def attention(ours: str, theirs: str, names: BlockNames, qkv: Form, proj: Form) -> Iterator[Entry]:
    """Yield the entries of the attention that follows a residual block.

    Args:
        ours: name of the residual block.
        theirs: name of the attention.
        names: of its layers.
        qkv: form of queries, keys and values.
        proj: form of the layer behind.
    """
    yield from layer(f"{ours}.attention.norm", f"{theirs}.{names.norm}")
    yield from layer(f"{ours}.attention.qkv", [f"{theirs}.{name}" for name in names.qkv], qkv)
    yield from layer(f"{ours}.attention.proj", f"{theirs}.{names.proj}", proj)


def has_attention(block: str, network: Mapping[str, Tensor]) -> bool:
    """Tell whether attention follows a residual block of ours."""
    return f"{block}.attention.qkv.weight" in network


def diffusers_unet(config: UNetConfig, network: Mapping[str, Tensor], names: BlockNames = DIFFUSERS) -> KeyMap:
    """Return the key map of a ``UNet2DModel``.

    Args:
        config: of our network.
        network: its ``state_dict``.
        names: ``DIFFUSERS``, or ``DIFFUSERS_OLD``.
    """
    made = [
        *layer("embedder.time_in", "time_embedding.linear_1"),
        *layer("embedder.time_out", "time_embedding.linear_2"),
        *layer("conv_in", "conv_in"),
        *layer("norm_out", "conv_norm_out"),
        *layer("conv_out", "conv_out"),
    ]
    middle = Site("middle.0", 0, 0), Site("middle.1", 0, 1)
    groups = [("down_blocks", down_sites(config)), ("mid_block", [list(middle)]), ("up_blocks", up_sites(config))]
    for part, levels in groups:
        for i, sites in enumerate(levels):
            home = part if part == "mid_block" else f"{part}.{i}"
            for site in sites:
                made += residual(site.ours, f"{home}.resnets.{site.number}", names, network)
                if has_attention(site.ours, network):
                    there = f"{home}.attentions.{site.number}"
                    made += attention(site.ours, there, names, stacked(3), as_it_is())
    for i in range(len(config.widths) - 1):
        made += layer(f"down.{i}.resample.conv", f"down_blocks.{i}.downsamplers.0.conv")
        made += layer(f"up.{i}.resample.conv", f"up_blocks.{i}.upsamplers.0.conv")
    return tuple(made)


def pytorch_diffusion_unet(config: UNetConfig, network: Mapping[str, Tensor]) -> KeyMap:
    """Return the key map of the weights of DDPM in github.com/pesser/pytorch_diffusion."""
    names, levels = PYTORCH_DIFFUSION, len(config.widths)
    made = [
        *layer("embedder.time_in", "temb.dense.0"),
        *layer("embedder.time_out", "temb.dense.1"),
        *layer("conv_in", "conv_in"),
        *layer("norm_out", "norm_out"),
        *layer("conv_out", "conv_out"),
        *residual("middle.0", "mid.block_1", names, network),
        *attention("middle.0", "mid.attn_1", names, stacked(3, 2), pointwise(2)),
        *residual("middle.1", "mid.block_2", names, network),
    ]
    for side, sites in (("down", down_sites(config)), ("up", up_sites(config))):
        for site in (site for level in sites for site in level):
            home = f"{side}.{site.level}"
            made += residual(site.ours, f"{home}.block.{site.number}", names, network)
            if has_attention(site.ours, network):
                made += attention(site.ours, f"{home}.attn.{site.number}", names, stacked(3, 2), pointwise(2))
    for i in range(levels - 1):
        made += layer(f"down.{i}.resample.conv", f"down.{i}.downsample.conv")
        made += layer(f"up.{i}.resample.conv", f"up.{levels - 1 - i}.upsample.conv")
    return tuple(made)


def openai_unet(config: UNetConfig, network: Mapping[str, Tensor], order: HeadOrder) -> KeyMap:
    """Return the key map of a network of guided-diffusion or improved-diffusion.

    Its blocks are numbered through all levels: ``input_blocks`` down, the first of them the first convolution, and
    ``output_blocks`` up, where what doubles the resolution stands in the last block of its level.

    Args:
        config: of our network.
        network: its ``state_dict``.
        order: of queries, keys and values.
    """
    made = [
        *layer("embedder.time_in", "time_embed.0"),
        *layer("embedder.time_out", "time_embed.2"),
        *layer("conv_in", "input_blocks.0.0"),
        *layer("norm_out", "out.0"),
        *layer("conv_out", "out.2"),
        *residual("middle.0", "middle_block.0", OPENAI, network),
        *_openai_attention(Site("middle.0", len(config.widths) - 1, 0), "middle_block.1", config, order),
        *residual("middle.1", "middle_block.2", OPENAI, network),
    ]
    if config.num_classes is not None:
        made.append(entry("embedder.label.weight", "label_emb.weight", without_null()))
    number = 1
    for i, sites in enumerate(down_sites(config)):
        for site in sites:
            made += _openai_block(site, f"input_blocks.{number}", config, network, order)
            number += 1
        if i < len(config.widths) - 1:
            made += _openai_resample(f"down.{i}.resample", f"input_blocks.{number}.0", "op", config, network)
            number += 1
    number = 0
    for i, sites in enumerate(up_sites(config)):
        for site in sites:
            made += _openai_block(site, f"output_blocks.{number}", config, network, order)
            number += 1
        if i < len(config.widths) - 1:
            place = 2 if has_attention(sites[-1].ours, network) else 1
            there = f"output_blocks.{number - 1}.{place}"
            made += _openai_resample(f"up.{i}.resample", there, "conv", config, network)
    return tuple(made)


def _openai_block(
    site: Site, theirs: str, config: UNetConfig, network: Mapping[str, Tensor], order: HeadOrder
) -> Iterator[Entry]:
    yield from residual(site.ours, f"{theirs}.0", OPENAI, network)
    if has_attention(site.ours, network):
        yield from _openai_attention(site, f"{theirs}.1", config, order)


def _openai_attention(site: Site, theirs: str, config: UNetConfig, order: HeadOrder) -> Iterator[Entry]:
    heads = heads_at(config, site.level)
    qkv = by_head(heads, 1) if order is HeadOrder.HEADS_FIRST else pointwise(1)
    yield from attention(site.ours, theirs, OPENAI, qkv, pointwise(1))


def _openai_resample(
    ours: str, theirs: str, conv: str, config: UNetConfig, network: Mapping[str, Tensor]
) -> Iterator[Entry]:
    if config.resample is Resample.RESIDUAL:
        yield from residual(ours, theirs, OPENAI, network)
    else:
        yield from layer(f"{ours}.conv", f"{theirs}.{conv}")


def heads_at(config: UNetConfig, level: int) -> int:
    """Return how many heads attention has at a level."""
    if config.head_dim is not None:
        return config.widths[level] // config.head_dim
    return 1 if config.heads is None else config.heads
