"""Arrays as tokens: what every transformer here begins and ends with, and what their configurations share.

An array along one axis (a sequence), two (an image) or three (a video) is padded to whole patches; each patch becomes
a token, row by row; and at the end each token becomes a patch again, and the padding is cut off.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unfog.diffusion.nn.attention import check_context
from unfog.diffusion.nn.conv import Convolution, convolution, crop, pad_to_multiple
from unfog.diffusion.nn.init import xavier
from unfog.diffusion.nn.positions import Positions, check_positions

__all__ = [
    "Layout",
    "Reading",
    "Transformer",
    "activate",
    "check_transformer",
    "cut",
    "hidden_features",
    "join",
    "paste",
    "patch_layer",
    "sides_of",
]

_PASTED = {
    1: "b w (q c) -> b c (w q)",
    2: "b (h w) (p q c) -> b c (h p) (w q)",
    3: "b (t h w) (o p q c) -> b c (t o) (h p) (w q)",
}


class Transformer(Protocol):
    """What `check_transformer` asks of a configuration; its fields are those of `dit.DiTConfig`."""

    @property
    def axes(self) -> int: ...
    @property
    def patch(self) -> int | tuple[int, ...]: ...
    @property
    def dim(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp_ratio(self) -> float: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def positions(self) -> Positions: ...
    @property
    def attributes(self) -> tuple[int, ...]: ...
    @property
    def image_channels(self) -> int: ...


def check_transformer(config: Transformer, *, counts: Sequence[str], shares: Sequence[str] = ()) -> None:
    """Refuse what no transformer can be.

    Args:
        config: of the network.
        counts: names of its fields that must be at least 1, or None.
        shares: names of its fields that must lie in [0, 1).

    Raises:
        ValueError: says which field is wrong.
    """
    for name in counts:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if config.axes not in _PASTED:
        raise ValueError(f"axes is {config.axes}; expected 1 (sequences), 2 (images) or 3 (videos).")
    sides_of(config.patch, config.axes)
    if any(count < 1 for count in config.attributes):
        raise ValueError(f"attributes is {config.attributes}; each must have at least 1 value.")
    if config.image_channels < 0:
        raise ValueError(f"image_channels is {config.image_channels}; it must be at least 0.")
    if config.dim % config.heads:
        raise ValueError(f"dim {config.dim} is not divisible by heads {config.heads}.")
    check_positions(config.positions, config.axes, config.dim, config.dim // config.heads)
    if hidden_features(config.dim, config.mlp_ratio) < 1:
        raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves no features of dim {config.dim}.")
    for name in shares:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be in [0, 1).")
    if not config.norm_eps > 0:
        raise ValueError(f"norm_eps is {config.norm_eps}; it must be positive.")


def hidden_features(dim: int, mlp_ratio: float) -> int:
    """Return the width of a perceptron."""
    return int(dim * mlp_ratio)


def activate(h: Tensor, *, gated: bool) -> Tensor:
    """Apply what stands between the two layers of a perceptron.

    Args:
        h: (..., hidden), or (..., 2 hidden) if gated.
        gated: the SiLU of the first half multiplies the second ("SwiGLU"), in place of the GELU, which is computed
            by its tanh approximation.

    Returns:
        (..., hidden).

    Source:
        Peebles and Xie 2023, arXiv 2212.09748 (GELU); Shazeer 2020, arXiv 2002.05202, equation 5 (SwiGLU).
    """
    if not gated:
        return F.gelu(h, approximate="tanh")
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate) * value


def sides_of(patch: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Return the side of a patch along each axis.

    Raises:
        ValueError: if a side is below 1 or there is not one for each axis.
    """
    sides = (patch,) * axes if isinstance(patch, int) else patch
    if len(sides) != axes or min(sides) < 1:
        raise ValueError(f"patch is {patch}; expected a side >= 1, or one for each of {axes} axes.")
    return sides


def patch_layer(in_channels: int, dim: int, sides: Sequence[int]) -> Convolution:
    """Make the layer that turns patches of the given sides into tokens."""
    return xavier(convolution(in_channels, dim, sides, axes=len(sides), stride=sides, padding=0))


class Layout(NamedTuple):
    """Where tokens lie in the array that they were cut from.

    Attributes:
        sides: of a patch along each axis.
        grid: patches along each axis of the padded array.
        corner: where the array begins in the padded one.
        size: of the array along each axis.
    """

    sides: tuple[int, ...]
    grid: tuple[int, ...]
    corner: tuple[int, ...]
    size: tuple[int, ...]


def cut(x: Tensor, layer: nn.Module, sides: tuple[int, ...]) -> tuple[Tensor, Layout]:
    """Cut arrays (B, C, *space) into tokens.

    Padding reflects where it fits, and else repeats the border.

    Args:
        x: arrays.
        layer: made by `patch_layer`.
        sides: of a patch along each axis.

    Returns:
        Tokens (B, N, dim), row by row, and where they lie.
    """
    padded, corner = pad_to_multiple(x, sides)
    h: Tensor = layer(padded)  # (B, dim, *grid)
    return h.flatten(2).transpose(1, 2), Layout(sides, tuple(h.shape[2:]), corner, tuple(x.shape[2:]))


def paste(h: Tensor, layout: Layout, *, last: nn.Module | None = None) -> Tensor:
    """Put tokens together again.

    Args:
        h: (B, N, sides x channels), the channels of a pixel beside each other.
        layout: from `cut`.
        last: layer that is applied before the padding is cut off, or None.

    Returns:
        (B, channels, *size).
    """
    lengths = {
        name: length
        for names, values in (("thw", layout.grid), ("opq", layout.sides))
        for name, length in zip(names[-len(values) :], values, strict=True)
    }
    whole = rearrange(h, _PASTED[len(layout.grid)], **lengths)
    return crop(whole if last is None else last(whole), layout.corner, layout.size)


class Reading(Protocol):
    """What `join` asks of a configuration."""

    @property
    def axes(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def image_channels(self) -> int: ...
    @property
    def context_dim(self) -> int | None: ...


def join(
    config: Reading, x: Tensor, image: Tensor | None, context: Tensor | None, context_mask: Tensor | None
) -> Tensor:
    """Check what comes into a network in the form of arrays, and join the condition `image` to the input.

    Args:
        config: of the network.
        x: (B, in_channels, *space).
        image: (B, image_channels, *space), or None.
        context: (B, M, context_dim), or None.
        context_mask: (B, M) bool, or None.

    Returns:
        (B, in_channels + image_channels, *space).

    Raises:
        ValueError: if a shape is wrong, or a condition is missing or is one that the network does not have.
        TypeError: if the mask is not bool.
    """
    names = ("T", "H", "W")[-config.axes :]
    space = ", ".join(names)
    if x.ndim != 2 + config.axes or x.shape[1] != config.in_channels or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {config.in_channels}, {space}), none 0.")
    check_context(context, context_mask, config.context_dim, len(x))
    if image is None and config.image_channels:
        raise ValueError(f"this network needs image, (B, {config.image_channels}, {space}); none was given.")
    if image is None:
        return x
    if not config.image_channels:
        raise ValueError("image was given to a network without one; set image_channels in its config.")
    expected = (len(x), config.image_channels, *x.shape[2:])
    if image.shape != expected:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected {expected}.")
    return torch.cat([x, image.to(x.dtype)], dim=1)
