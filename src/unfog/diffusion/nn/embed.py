"""Embeddings of noise levels, classes, attributes and vectors.

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
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier

__all__ = [
    "AttributeTable",
    "AttributeTokens",
    "Conditioned",
    "Embedder",
    "Fourier",
    "Sinusoidal",
    "TimeEmbedding",
    "check_attribute_tokens",
    "check_conditions",
    "expand",
    "frequency_bits",
    "sinusoids",
    "working_dtype",
]


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed frequencies, evenly spaced in log scale from 1 down to about 1/max_period.

    The defaults are those of ADM and DiT. DDPM has `freq_shift=1, sin_first=True`.

    Args:
        max_period: slowest wavelength divided by 2 pi, > 1. It fits noise levels that span about 0..1000.
        freq_shift: 0 ends one step before 1/max_period, 1 ends on it.
        sin_first: whether sines come before cosines.
        scale: what noise levels are multiplied by, > 0; 1000 / T for networks that were trained with T levels and told
            the index of a level as if there were 1000 (Improved DDPM).

    Raises:
        ValueError: for values outside these ranges.
    """

    max_period: float = 10000.0
    freq_shift: int = 0
    sin_first: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it must be positive (published: 1, or 1000 over the levels).")
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
    phase = kind.scale * c_noise[..., None] * frequencies
    parts = (phase.sin(), phase.cos()) if kind.sin_first else (phase.cos(), phase.sin())
    return torch.cat(parts, dim=-1)


def working_dtype(x: Tensor) -> torch.dtype:
    """Say in which dtype phases are formed for images like `x`: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Conditioned(Protocol):
    """What `check_conditions` asks of a network or a part of it; the fields are those of `Embedder`."""

    num_classes: int | None
    vector_dim: int | None
    attributes: tuple[int, ...]


def check_conditions(
    network: Conditioned,
    c_noise: Tensor,
    *,
    label: Tensor | None,
    vector: Tensor | None,
    attributes: Tensor | None,
    batch: int,
) -> None:
    """Refuse conditions that do not suit a network.

    Args:
        network: says which conditions there are.
        c_noise: as for `Embedder.forward`, like the conditions.
        label: classes.
        vector: vectors.
        attributes: attributes.
        batch: number B of examples.

    Raises:
        ValueError: if a shape is wrong, or a condition is missing or is one that the network does not have.
        TypeError: if `c_noise` has 16 bits, or `label` or `attributes` are not integer.
    """
    if c_noise.shape not in {(), (batch,)}:
        raise ValueError(f"c_noise has shape {tuple(c_noise.shape)}; expected () or ({batch},).")
    if c_noise.dtype in (torch.bfloat16, torch.float16):
        raise TypeError(f"c_noise is {c_noise.dtype}, too coarse for noise levels; keep it in float32.")
    if label is not None:
        _check_label(label, network.num_classes, batch)
    if vector is None and network.vector_dim is not None:
        raise ValueError(f"this network needs vector, ({batch}, {network.vector_dim}); none was given.")
    if vector is not None and network.vector_dim is None:
        raise ValueError("vector was given to a network without vectors; set vector_dim in its config.")
    if vector is not None and vector.shape != (batch, network.vector_dim):
        raise ValueError(f"vector has shape {tuple(vector.shape)}; expected ({batch}, {network.vector_dim}).")
    if attributes is not None:
        _check_attributes(attributes, network.attributes, batch)


def _check_label(label: Tensor, num_classes: int | None, batch: int) -> None:
    if num_classes is None:
        raise ValueError("label was given to a network without classes; set num_classes in its config.")
    if label.shape != (batch,):
        raise ValueError(f"label has shape {tuple(label.shape)}; expected ({batch},).")
    if label.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"label is {label.dtype}; expected int64 classes in [0, {num_classes}].")


def _check_attributes(given: Tensor, counts: tuple[int, ...], batch: int) -> None:
    if not counts:
        raise ValueError("attributes were given to a network without them; set attributes in its config.")
    if given.shape != (batch, len(counts)):
        raise ValueError(f"attributes have shape {tuple(given.shape)}; expected {(batch, len(counts))}.")
    if given.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"attributes are {given.dtype}; expected int64, each in [0, n] of {counts}.")


def frequency_bits(kind: Fourier, features: int) -> Tensor:
    """Draw the frequencies of `kind` from torch's generator: (features / 2,) int32, the bits of float32 numbers.

    Bits, because `network.to(torch.bfloat16)` rounds every floating-point buffer, and a rounded frequency is another
    frequency. Integers are left alone.
    """
    return (kind.scale * torch.randn(features // 2, dtype=torch.float32)).view(torch.int32)


def expand(c_noise: Tensor, features: int, kind: TimeEmbedding, bits: Tensor | None) -> Tensor:
    """Expand noise levels to sines and cosines.

    Args:
        c_noise: (B,) float32 or float64; the result is computed in its dtype.
        features: number of features, even, at least 4.
        kind: which frequencies.
        bits: those of `Fourier`, from `frequency_bits`; None for `Sinusoidal`.

    Returns:
        (B, features) in [-1, 1].
    """
    if isinstance(kind, Sinusoidal):
        return sinusoids(c_noise, features, kind)
    assert bits is not None
    phase = 2 * pi * c_noise[:, None] * bits.view(torch.float32).to(c_noise.dtype)
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class AttributeTable(nn.Embedding):
    """One table for the values of all attributes: each has its rows there, and behind them that of its learned null.

    Args:
        attributes: number of values of each attribute without its null.
        dim: width of a row.
    """

    def __init__(self, attributes: tuple[int, ...], dim: int):
        super().__init__(sum(attributes) + len(attributes), dim)
        self.register_buffer("nulls", torch.tensor(attributes, dtype=torch.int64), persistent=False)

    def look_up(self, attributes: Tensor | None, batch: int) -> Tensor:
        """Look up the rows of attributes.

        Args:
            attributes: (B, A) int64, column i in [0, n], where n is the number of its values and the null; None is the
                null of all.
            batch: number B of examples.

        Returns:
            (B, A, dim).
        """
        nulls = self.get_buffer("nulls")
        first = (nulls + 1).cumsum(0) - (nulls + 1)
        rows: Tensor = self(first + (nulls.expand(batch, -1) if attributes is None else attributes))
        return rows


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
        label_early: whether the class is added to the expanded noise level, before the perceptron, its table being
            `features` wide (Karras et al. 2022, for DDPM++ and NCSN++); otherwise to what comes out of it.
        augmentation: how many numbers tell what was done to a picture; 0 for a network that is not told. They pass a
            layer without bias, and are added before the perceptron.
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
        label_early: bool = False,
        augmentation: int = 0,
    ):
        super().__init__()
        self.time = time
        self.features = features
        self.num_classes = num_classes
        self.vector_dim = vector_dim
        self.attributes = attributes
        if isinstance(time, Fourier):
            self.register_buffer("frequency_bits", frequency_bits(time, features))
        self.time_in = xavier(nn.Linear(features, dim))
        self.time_out = xavier(nn.Linear(dim, dim))
        self.label_early = label_early
        self.label = None
        if num_classes is not None:
            self.label = nn.Embedding(num_classes + 1, features if label_early else dim)
        self.vector_in = None if vector_dim is None else xavier(nn.Linear(vector_dim, dim))
        self.vector_out = None if vector_dim is None else xavier(nn.Linear(dim, dim))
        self.augmented = xavier(nn.Linear(augmentation, features, bias=False)) if augmentation else None
        self.attribute = AttributeTable(attributes, dim) if attributes else None
        self.attribute_out = xavier(nn.Linear(dim, dim)) if attributes else None

    def forward(
        self,
        c_noise: Tensor,
        *,
        label: Tensor | None,
        vector: Tensor | None,
        attributes: Tensor | None = None,
        augmentation: Tensor | None = None,
        like: Tensor,
    ) -> Tensor:
        """Embed one batch.

        Args:
            c_noise: noise levels, (B,) or ().
            label: classes (B,) int64 in [0, num_classes], where num_classes is the null; None is the null.
            vector: (B, vector_dim).
            attributes: (B, A) int64, column i in [0, attributes[i]], where attributes[i] is the null; None is the null
                of all.
            augmentation: (B, augmentation), what was done to the pictures; None is nothing, and so is 0.
            like: the images (B, ...): the embedding takes their number, dtype and device.

        Returns:
            (B, dim) after the SiLU with which every block would begin.

        Raises:
            ValueError: if a condition is missing that the network needs, is given that it cannot use, or has
                the wrong shape.
            TypeError: if `c_noise` has 16 bits, or `label` or `attributes` are not integer.
        """
        check_conditions(self, c_noise, label=label, vector=vector, attributes=attributes, batch=len(like))
        h = self.expand(c_noise.to(working_dtype(like)).expand(len(like))).to(like.dtype)  # (B, features)
        if self.label is not None and self.num_classes is not None and label is None:
            label = torch.full((len(like),), self.num_classes, device=like.device)
        if self.label is not None and self.label_early:
            h = h + self.label(label)
        if augmentation is not None:
            h = h + self._told(augmentation, len(like)).to(like.dtype)
        h = self.time_out(F.silu(self.time_in(h)))  # (B, dim)
        if self.label is not None and not self.label_early:
            h = h + self.label(label)
        if self.vector_in is not None and self.vector_out is not None and vector is not None:
            h = h + self.vector_out(F.silu(self.vector_in(vector.to(like.dtype))))
        if self.attribute is not None and self.attribute_out is not None:
            h = h + self.attribute_out(F.silu(self.attribute.look_up(attributes, len(like)).sum(1)))
        return F.silu(h)

    def _told(self, augmentation: Tensor, batch: int) -> Tensor:
        """Embed what was done to pictures."""
        if self.augmented is None:
            raise ValueError("augmentation was given to a network that is not told; set augmentation in its config.")
        numbers = self.augmented.in_features
        if augmentation.shape != (batch, numbers):
            raise ValueError(f"augmentation has shape {tuple(augmentation.shape)}; expected ({batch}, {numbers}).")
        out: Tensor = self.augmented(augmentation.to(self.augmented.weight.dtype))
        return out

    def expand(self, c_noise: Tensor) -> Tensor:
        """Expand noise levels (B,), float32 or float64, to features (B, features) of the same dtype."""
        bits = self.get_buffer("frequency_bits") if isinstance(self.time, Fourier) else None
        return expand(c_noise, self.features, self.time, bits)


def check_attribute_tokens(attributes: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    """Refuse tokens that attributes cannot be gathered in.

    Args:
        attributes: number of values of each attribute.
        tokens: which token each belongs to.

    Raises:
        ValueError: unless there is a token for each attribute, numbered from 0 without a gap.
    """
    if len(tokens) != len(attributes) or set(tokens) != set(range(max(tokens) + 1)):
        raise ValueError(
            f"attribute_tokens is {tokens}; expected a number for each of {len(attributes)} attributes, from 0 without "
            f"a gap."
        )


class AttributeTokens(nn.Module):
    """Attributes as tokens that attention can read: those of one object are summed into one.

    Where an embedding of the whole picture must say "the first is red, the second is blue; the first lies to the
    left", a token says "red, to the left", and a patch can find the object that it belongs to by its place.

    Args:
        attributes: number of values of each attribute without its null.
        tokens: which token each attribute belongs to, as `check_attribute_tokens` wants them.
        dim: width of a token.
    """

    def __init__(self, attributes: tuple[int, ...], tokens: tuple[int, ...], dim: int):
        super().__init__()
        check_attribute_tokens(attributes, tokens)
        self.attribute = AttributeTable(attributes, dim)
        # Compared, not F.one_hot, which looks at numbers that a network on the meta device does not have.
        belongs = (torch.arange(max(tokens) + 1)[:, None] == torch.tensor(tokens)).to(torch.float32)  # (tokens, A)
        # Tokens start with unit variance, however many attributes they sum.
        self.register_buffer("belongs", belongs / belongs.sum(1, keepdim=True).sqrt(), persistent=False)

    def forward(
        self, attributes: Tensor | None, context: Tensor | None, context_mask: Tensor | None, *, like: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Make tokens, and put those of a context behind them.

        Args:
            attributes: (B, A) int64, as for `Embedder`; None is the null of all.
            context: further tokens (B, M, dim), or None.
            context_mask: (B, M) bool, which of them count; None is all.
            like: the images (B, ...): the tokens take their number, dtype and device.

        Returns:
            (B, tokens + M, dim), and which of them count, (B, tokens + M) bool, or None for all.
        """
        rows = self.attribute.look_up(attributes, len(like))
        own = torch.einsum("ta,bad->btd", self.get_buffer("belongs").to(like.dtype), rows)
        if context is None:
            return own, None
        if context_mask is not None:
            context_mask = torch.cat([context_mask.new_ones(own.shape[:2]), context_mask], dim=1)
        return torch.cat([own, context], dim=1), context_mask
