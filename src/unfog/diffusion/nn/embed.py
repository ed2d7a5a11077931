"""Embeddings of noise levels, classes, vectors and positions.

A noise level c becomes a vector of sines and cosines of `f_k c` over a set of frequencies, which a small
perceptron turns into the embedding that every block of a network reads. Conditions are added to it.

Precision: with f up to 1 and c up to 1000, bfloat16 could not tell neighbouring levels apart. Phases are
therefore formed in float32, or in float64 for float64 images, and only their sines are cast.

Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5 (sinusoids); Ho, Jain, Abbeel 2020, arXiv 2006.11239,
appendix B (for noise levels); Tancik et al. 2020, arXiv 2006.10739 (random Fourier features) and
Song et al. 2021, arXiv 2011.13456, appendix H (for noise levels, scale 16); Dhariwal and Nichol 2021,
arXiv 2105.05233, section 3.1 (class embedding added to the embedding of the noise level).
"""

from dataclasses import dataclass
from math import log, pi
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier

__all__ = ["Embedder", "Fourier", "Sinusoidal", "TimeEmbedding", "positions", "sinusoids"]


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed frequencies, evenly spaced in log scale from 1 down to about 1/max_period.

    The defaults are those of ADM and DiT. DDPM has `freq_shift=1, sin_first=True`.

    Args:
        max_period: slowest wavelength divided by 2 pi, > 1. It fits noise levels that span about 0..1000.
        freq_shift: 0 ends one step before 1/max_period, 1 ends on it.
        sin_first: whether sines come before cosines.

    Raises:
        ValueError: for values outside these ranges.
    """

    max_period: float = 10000.0
    freq_shift: int = 0
    sin_first: bool = False

    def __post_init__(self) -> None:
        if not self.max_period > 1:
            raise ValueError(f"max_period is {self.max_period}; it must be above 1 (published: 10000).")
        if self.freq_shift not in (0, 1):
            raise ValueError(f"freq_shift is {self.freq_shift}; it must be 0 (ADM, DiT) or 1 (DDPM).")


@dataclass(frozen=True)
class Fourier:
    """Random frequencies from a normal distribution, drawn once and kept with the weights.

    For noise levels of small range such as EDM's log(sigma)/4; cosines come before sines.

    Args:
        scale: standard deviation of the frequencies in turns per unit of noise level, > 0.

    Raises:
        ValueError: if `scale` is not positive.
    """

    scale: float = 16.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it must be positive (published: 16).")


TimeEmbedding: TypeAlias = Sinusoidal | Fourier


def sinusoids(c_noise: Tensor, dim: int, kind: Sinusoidal) -> Tensor:
    """Embed numbers as cosines and sines of geometrically spaced frequencies.

    Args:
        c_noise: (...,) float32 or float64; the result is computed in its dtype.
        dim: number of features, even, at least 4.
        kind: spacing and order.

    Returns:
        (..., dim) in [-1, 1].
    """
    half = dim // 2
    steps = torch.arange(half, dtype=c_noise.dtype, device=c_noise.device)
    frequencies = torch.exp(-log(kind.max_period) * steps / (half - kind.freq_shift))
    phase = c_noise[..., None] * frequencies
    parts = (phase.sin(), phase.cos()) if kind.sin_first else (phase.cos(), phase.sin())
    return torch.cat(parts, dim=-1)


def positions(height: int, width: int, dim: int, *, like: Tensor) -> Tensor:
    """Embed the cells of a grid by sines and cosines of column and row.

    Positions count cells from 0, whatever the size of the grid: a cell keeps its embedding when the grid grows.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        dim: number of features, divisible by 4.
        like: tensor whose device and dtype the result takes; computed in at least float32.

    Returns:
        (height * width, dim), row by row; the first half of the features encodes the column, the second half
        the row, each with sines before cosines.

    Source:
        Peebles and Xie 2023, arXiv 2212.09748, section 3.2 ("frequency-based positional embeddings"), in the
        layout of their published weights.
    """
    kind = Sinusoidal(sin_first=True)
    exact = _working_dtype(like)
    rows = sinusoids(torch.arange(height, dtype=exact, device=like.device), dim // 2, kind)
    columns = sinusoids(torch.arange(width, dtype=exact, device=like.device), dim // 2, kind)
    grid = torch.cat([columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1)
    return grid.flatten(0, 1).to(like.dtype)


def _working_dtype(x: Tensor) -> torch.dtype:
    """Say in which dtype phases are formed for images like `x`: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Embedder(nn.Module):
    """Embedding of noise level, class, attributes and vector, summed: one vector for each example.

    A class is looked up in a table of `num_classes + 1` rows, the last of which is the learned null. So is each
    attribute, in rows of its own, and their sum passes a further layer, which can tell combinations apart. A vector
    passes a perceptron of its own; its null is the business of whoever makes the vectors.

    Args:
        time: how noise levels are expanded.
        features: number of expanded features, even, at least 4.
        dim: width of the embedding.
        num_classes: number of classes without the null, or None for a network without classes.
        vector_dim: length of the vectors, or None for a network without them.
        attributes: number of values of each attribute without its null, or () for a network without them.
    """

    def __init__(
        self,
        time: TimeEmbedding,
        features: int,
        dim: int,
        *,
        num_classes: int | None = None,
        vector_dim: int | None = None,
        attributes: tuple[int, ...] = (),
    ):
        super().__init__()
        self.time = time
        self.features = features
        self.num_classes = num_classes
        self.vector_dim = vector_dim
        self.attributes = attributes
        if isinstance(time, Fourier):
            # Kept as bit patterns, because `network.to(torch.bfloat16)` rounds every floating-point buffer and a
            # rounded frequency is another frequency. Integers are left alone.
            frequencies = time.scale * torch.randn(features // 2, dtype=torch.float32)
            self.register_buffer("frequency_bits", frequencies.view(torch.int32))
        self.time_in = xavier(nn.Linear(features, dim))
        self.time_out = xavier(nn.Linear(dim, dim))
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, dim)
        self.vector_in = None if vector_dim is None else xavier(nn.Linear(vector_dim, dim))
        self.vector_out = None if vector_dim is None else xavier(nn.Linear(dim, dim))
        self.attribute = nn.Embedding(sum(attributes) + len(attributes), dim) if attributes else None
        self.attribute_out = xavier(nn.Linear(dim, dim)) if attributes else None
        self.register_buffer("attribute_nulls", torch.tensor(attributes, dtype=torch.int64), persistent=False)

    def forward(
        self,
        c_noise: Tensor,
        *,
        label: Tensor | None,
        vector: Tensor | None,
        attributes: Tensor | None = None,
        like: Tensor,
    ) -> Tensor:
        """Embed one batch.

        Args:
            c_noise: noise levels, (B,) or ().
            label: classes (B,) int64 in [0, num_classes], where num_classes is the null; None is the null.
            vector: (B, vector_dim).
            attributes: (B, A) int64, column i in [0, attributes[i]], where attributes[i] is the null; None is the null
                of all.
            like: the images (B, ...): the embedding takes their number, dtype and device.

        Returns:
            (B, dim) after the SiLU with which every block would begin.

        Raises:
            ValueError: if a condition is missing that the network needs, is given that it cannot use, or has
                the wrong shape.
            TypeError: if `c_noise` has 16 bits, or `label` or `attributes` are not integer.
        """
        self._check(c_noise, label, vector, len(like))
        h = self.expand(c_noise.to(_working_dtype(like)).expand(len(like))).to(like.dtype)  # (B, features)
        h = self.time_out(F.silu(self.time_in(h)))  # (B, dim)
        if self.label is not None and self.num_classes is not None:
            if label is None:
                label = torch.full((len(like),), self.num_classes, device=like.device)
            h = h + self.label(label)
        if self.vector_in is not None and self.vector_out is not None and vector is not None:
            h = h + self.vector_out(F.silu(self.vector_in(vector.to(like.dtype))))
        if attributes is not None:
            self._check_attributes(attributes, len(like))
        if self.attribute is not None and self.attribute_out is not None:
            rows = self._attribute_rows(attributes, len(like))
            h = h + self.attribute_out(F.silu(self.attribute(rows).sum(1)))
        return F.silu(h)

    def _attribute_rows(self, attributes: Tensor | None, batch: int) -> Tensor:
        """Return the rows of the table, (B, A): each attribute has its values there, and behind them its null."""
        nulls = self.get_buffer("attribute_nulls")
        first = (nulls + 1).cumsum(0) - (nulls + 1)
        return first + (nulls.expand(batch, -1) if attributes is None else attributes)

    def expand(self, c_noise: Tensor) -> Tensor:
        """Expand noise levels (B,), float32 or float64, to features (B, features) of the same dtype."""
        if isinstance(self.time, Sinusoidal):
            return sinusoids(c_noise, self.features, self.time)
        frequencies = self.get_buffer("frequency_bits").view(torch.float32).to(c_noise.dtype)
        phase = 2 * pi * c_noise[:, None] * frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=-1)

    def _check(self, c_noise: Tensor, label: Tensor | None, vector: Tensor | None, batch: int) -> None:
        if c_noise.shape not in {(), (batch,)}:
            raise ValueError(f"c_noise has shape {tuple(c_noise.shape)}; expected () or ({batch},).")
        if c_noise.dtype in (torch.bfloat16, torch.float16):
            raise TypeError(f"c_noise is {c_noise.dtype}, too coarse for noise levels; keep it in float32.")
        if label is not None:
            self._check_label(label, batch)
        if vector is None and self.vector_dim is not None:
            raise ValueError(f"this network needs vector, ({batch}, {self.vector_dim}); none was given.")
        if vector is not None and self.vector_dim is None:
            raise ValueError("vector was given to a network without vectors; set vector_dim in its config.")
        if vector is not None and vector.shape != (batch, self.vector_dim):
            raise ValueError(f"vector has shape {tuple(vector.shape)}; expected ({batch}, {self.vector_dim}).")

    def _check_attributes(self, attributes: Tensor, batch: int) -> None:
        if not self.attributes:
            raise ValueError("attributes were given to a network without them; set attributes in its config.")
        expected = (batch, len(self.attributes))
        if attributes.shape != expected:
            raise ValueError(f"attributes have shape {tuple(attributes.shape)}; expected {expected}.")
        if attributes.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"attributes are {attributes.dtype}; expected int64, each in [0, n] of {self.attributes}.")

    def _check_label(self, label: Tensor, batch: int) -> None:
        if self.num_classes is None:
            raise ValueError("label was given to a network without classes; set num_classes in its config.")
        if label.shape != (batch,):
            raise ValueError(f"label has shape {tuple(label.shape)}; expected ({batch},).")
        if label.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"label is {label.dtype}; expected int64 classes in [0, {self.num_classes}].")
