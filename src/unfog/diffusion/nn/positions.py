"""Where the tokens of a grid are: sines and cosines, rotations, or a learned table.

Attention does not see the order of its tokens, so a transformer has to be told. Sines and cosines are added to the
tokens; rotations turn the queries and keys, so that products of theirs depend on differences of positions alone; a
table is learned for one grid and interpolated to others. All count cells, on one axis (sequences), two (images) or
three (videos), from the first token of each axis.

Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5 (sines and cosines); Su et al. 2021, arXiv 2104.09864,
section 3.2 (rotations), here an equal share of a head's features for each axis; Dosovitskiy et al. 2020,
arXiv 2010.11929, section 3.2 (a learned table, interpolated to finer grids).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.embed import Sinusoidal, sinusoids, working_dtype

__all__ = ["Learned", "Placement", "Positions", "Rotary", "Sines", "check_positions", "positions"]


@dataclass(frozen=True)
class Sines:
    """Sines and cosines of each axis, added to the tokens. The defaults are DiT's.

    Args:
        step: from one cell to the next, > 0. A network trained on a grid can be asked for one twice as fine with half
            the step.
        window: cells of the window in whose middle every grid lies, >= 1, so that the middle of an image keeps its
            positions when the image grows (SD3: 192 cells of a third); None counts from the first cell.

    Raises:
        ValueError: for values outside these ranges.
    """

    step: float = 1.0
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ValueError(f"step is {self.step}; it must be positive (published: 1).")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1, or None to count from the first cell.")


@dataclass(frozen=True)
class Rotary:
    """Rotations of queries and keys by angles proportional to the position, nothing added to the tokens.

    Args:
        max_period: slowest wavelength in cells divided by 2 pi, > 1.

    Raises:
        ValueError: if `max_period` is not above 1.
    """

    max_period: float = 10000.0

    def __post_init__(self) -> None:
        if not self.max_period > 1:
            raise ValueError(f"max_period is {self.max_period}; it must be above 1 (published: 10000).")


@dataclass(frozen=True)
class Learned:
    """A table with a row for each cell of one grid, added to the tokens, interpolated linearly for other grids.

    Args:
        grid: cells along each axis, each >= 1; images of 32x32 pixels in patches of 2 have (16, 16).

    Raises:
        ValueError: if an axis has no cells.
    """

    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.grid or min(self.grid) < 1:
            raise ValueError(f"grid is {self.grid}; each axis needs at least 1 cell.")


Positions: TypeAlias = Sines | Rotary | Learned


def check_positions(kind: Positions, axes: int, dim: int, head_dim: int) -> None:
    """Refuse positions that do not suit a transformer.

    Args:
        kind: how tokens are told where they are.
        axes: number of axes of the grid.
        dim: width of a token.
        head_dim: width of an attention head.

    Raises:
        ValueError: says which number does not suit.
    """
    if isinstance(kind, Sines) and dim % 4:
        raise ValueError(f"dim is {dim}; the table of positions needs a multiple of 4.")
    if isinstance(kind, Sines) and dim < 4 * axes:
        raise ValueError(f"dim is {dim}; the table of positions needs at least {4 * axes}.")
    if isinstance(kind, Rotary) and (head_dim % 2 or head_dim < 2 * axes):
        raise ValueError(
            f"dim gives each of the heads {head_dim} features; rotary positions on {axes} axes need an even number of "
            f"at least {2 * axes}."
        )
    if isinstance(kind, Learned) and len(kind.grid) != axes:
        raise ValueError(f"positions has a grid of {len(kind.grid)} axes, {kind.grid}; this network has {axes}.")


class Placement(nn.Module):
    """Positions of one network: what is added to its tokens, and how its queries and keys are turned.

    Args:
        kind: how.
        axes: number of axes of the grid.
        dim: width of a token.
        head_dim: width of an attention head.
    """

    def __init__(self, kind: Positions, axes: int, dim: int, head_dim: int):
        super().__init__()
        self.kind = kind
        self.dim = dim
        self.shares = _shares(head_dim // 2, axes)
        if isinstance(kind, Learned):
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(prod(kind.grid), dim), std=0.02))

    def added(self, grid: Sequence[int], *, like: Tensor) -> Tensor | None:
        """Return what is added to the tokens of a grid, (N, dim) in the dtype of `like`; None for nothing."""
        if isinstance(self.kind, Rotary):
            return None
        if isinstance(self.kind, Sines):
            window = self.kind.window
            firsts = [0 if window is None else (window - count) // 2 for count in grid]
            return positions(grid, self.dim, firsts=firsts, step=self.kind.step, like=like)
        if tuple(grid) == self.kind.grid:
            return self.table
        mode = ("linear", "bilinear", "trilinear")[len(grid) - 1]
        table = self.table.T.reshape(1, self.dim, *self.kind.grid)
        return F.interpolate(table, size=tuple(grid), mode=mode, align_corners=False)[0].flatten(1).T

    def rotation(self, grid: Sequence[int], *, like: Tensor, others: int = 0) -> Tensor | None:
        """Return by what the queries and keys of a grid are turned.

        Args:
            grid: cells along each axis.
            like: tensor whose device and dtype the result takes; computed in at least float32.
            others: number of tokens behind the grid's that have no position and are not turned.

        Returns:
            (2, N + others, head_dim / 2), cosines and sines of the angles; None for no rotation.
        """
        if not isinstance(self.kind, Rotary):
            return None
        axes = []
        for axis, (count, share) in enumerate(zip(grid, self.shares, strict=True)):
            cells = torch.arange(count, dtype=working_dtype(like), device=like.device)
            steps = torch.arange(share, dtype=cells.dtype, device=like.device)
            angles = cells[:, None] * self.kind.max_period ** (-steps / share)
            axes.append(_along(axis, angles, grid))
        flat = F.pad(torch.cat(axes, dim=-1).flatten(0, -2), (0, 0, 0, others))  # (N + others, head_dim / 2)
        return torch.stack([flat.cos(), flat.sin()]).to(like.dtype)


def positions(
    grid: Sequence[int], dim: int, *, firsts: Sequence[float] | None = None, step: float = 1.0, like: Tensor
) -> Tensor:
    """Embed the cells of a grid by sines and cosines of their position on each axis.

    A cell keeps its embedding when the grid grows at its end.

    Args:
        grid: cells along each axis.
        dim: number of features, even, at least 4 an axis.
        firsts: number of the first cell of each axis; None is 0 for all.
        step: from one cell to the next.
        like: tensor whose device and dtype the result takes; computed in at least float32.

    Returns:
        (N, dim), row by row; the last axis has the first features and the first axis the last, each with sines before
        cosines. Shares are equal; what is left over belongs to the last axis.

    Source:
        Peebles and Xie 2023, arXiv 2212.09748, section 3.2 ("frequency-based positional embeddings"), in the
        layout of their published weights.
    """
    kind = Sinusoidal(sin_first=True)
    parts = []
    for axis, (count, share) in enumerate(zip(grid, _shares(dim // 2, len(grid)), strict=True)):
        first = 0.0 if firsts is None else firsts[axis]
        cells = step * (torch.arange(count, dtype=working_dtype(like), device=like.device) + first)
        parts.append(_along(axis, sinusoids(cells, 2 * share, kind), grid))
    return torch.cat(parts[::-1], dim=-1).flatten(0, -2).to(like.dtype)


def _shares(features: int, axes: int) -> list[int]:
    """Deal features out to axes, as equally as whole numbers allow, the rest to the last."""
    share = features // axes
    return [share] * (axes - 1) + [features - share * (axes - 1)]


def _along(axis: int, features: Tensor, grid: Sequence[int]) -> Tensor:
    """Spread features (n, d) of the cells of one axis over the grid, (*grid, d)."""
    shape = [1] * len(grid) + [features.shape[-1]]
    shape[axis] = features.shape[0]
    return features.view(shape).expand(*grid, -1)
