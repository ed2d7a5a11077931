"""A normalising flow of pictures: an invertible network whose Jacobian's determinant is known.

A picture becomes logits, and then passes levels. Each level turns squares of 2x2 pixels into channels, takes a number
of steps, and lets half of the channels go, which are latents from there on. A step scales and shifts each channel,
mixes the channels, and changes one half of them by an affine map that the other half decides. The last of these maps
before a split is what makes the latents that leave depend on those that stay.

    log p(x) = log N(z; 0, 1) + sum of the log-determinants of all layers

Source:
    Dinh, Sohl-Dickstein, Bengio 2017 (arXiv 1605.08803): affine couplings, squeezing, multiple scales, logits of the
    data (section 4.1). Kingma, Dhariwal 2018 (1807.03039), section 3: the step, its initialisation from data, channels
    mixed by a matrix in the form P L U, couplings that begin as the identity.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.nn.init import xavier, zeroed
from unfog.diffusion.nn.stages import embed_label

__all__ = ["CouplingFlow", "FlowConfig"]

MOST_LEVELS = 3


@dataclass(frozen=True)
class FlowConfig:
    """The shape of a flow.

    Attributes:
        channels: of the pictures.
        size: height and width of the pictures, both even and at least 4.
        width: hidden channels of the couplings at the first level; each further one has twice as many.
        steps: of each level.
        num_classes: number of classes, or None for a flow that knows none.
        margin: pixels are brought from [0, 1] to [margin, 1 - margin] before logits are taken, in (0, 0.5).
    """

    channels: int
    size: tuple[int, int]
    width: int
    steps: int = 8
    num_classes: int | None = None
    margin: float = 0.05

    def __post_init__(self) -> None:
        if min(self.channels, self.width, self.steps) < 1:
            raise ValueError(
                f"expected channels, width and steps of at least 1, got {self.channels}, {self.width}, {self.steps}"
            )
        if not 0 < self.margin < 0.5:
            raise ValueError(f"expected a margin in (0, 0.5), got {self.margin}")
        if self.levels == 0:
            raise ValueError(f"expected an even height and width of at least 4, got {self.size[0]} x {self.size[1]}")

    @property
    def levels(self) -> int:
        """How often squares of pixels are turned into channels."""
        count, sides = 0, self.size
        while count < MOST_LEVELS and all(side % 2 == 0 and side >= 4 for side in sides):
            count, sides = count + 1, (sides[0] // 2, sides[1] // 2)
        return count

    @property
    def dimensions(self) -> int:
        """Numbers of a picture, and of its latent."""
        return self.channels * self.size[0] * self.size[1]


class _Layer(nn.Module, ABC):
    """An invertible map of ``(B, C, H, W)`` to the same shape."""

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the image of ``x`` and the log-determinant ``(B,)``."""

    @abstractmethod
    def inverse(self, y: Tensor, label: Tensor | None) -> Tensor:
        """Return what is mapped to ``y``."""


class _ActNorm(_Layer):
    """A scale and a shift for each channel, begun so that a batch of data leaves with mean 0 and variance 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set scale and shift for a batch."""
        variance, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
        # A channel that is constant in the batch stays finite.
        self.log_scale.copy_(-0.5 * torch.log(variance[0] + 1e-6))
        self.shift.copy_(-mean[0] * self.log_scale.exp())

    def forward(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        area = x.shape[-2] * x.shape[-1]
        return x * self.log_scale.exp() + self.shift, (area * self.log_scale.sum()).expand(len(x))

    def inverse(self, y: Tensor, label: Tensor | None) -> Tensor:
        return (y - self.shift) * torch.exp(-self.log_scale)


class _Mixing(_Layer):
    """Mix the channels of each pixel by a matrix ``P L (U + diag(s))`` that begins as a random rotation.

    P and the signs of s stay as they were drawn; s cannot become zero, so the matrix is always invertible.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        p, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", p.argmax(1))  # row i of the product is row permutation[i] of L U
        self.register_buffer("positive", diagonal > 0)
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())

    def _factors(self) -> tuple[Tensor, Tensor]:
        signs = torch.where(self.get_buffer("positive"), 1.0, -1.0).to(self.log_diagonal)
        lower = self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower)
        return lower, self.upper.triu(1) + torch.diag(signs * self.log_diagonal.exp())

    def forward(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        matrix = (lower @ upper)[self.get_buffer("permutation")]
        area = x.shape[-2] * x.shape[-1]
        return F.conv2d(x, matrix[:, :, None, None]), (area * self.log_diagonal.sum()).expand(len(x))

    def inverse(self, y: Tensor, label: Tensor | None) -> Tensor:
        lower, upper = self._factors()
        rows = y[:, self.get_buffer("permutation").argsort()].flatten(2)  # (B, C, H W)
        rows = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
        mixed: Tensor = torch.linalg.solve_triangular(upper, rows, upper=True).unflatten(2, y.shape[2:])
        return mixed


class _Coupling(_Layer):
    """Change the second half of the channels by an affine map that the first half and the class decide."""

    def __init__(self, channels: int, width: int, num_classes: int | None) -> None:
        super().__init__()
        self.kept = channels // 2
        self.conv1 = xavier(nn.Conv2d(self.kept, width, 3, padding=1))
        self.conv2 = xavier(nn.Conv2d(width, width, 1))
        self.conv3 = zeroed(nn.Conv2d(width, 2 * (channels - self.kept), 3, padding=1))
        self.label = None if num_classes is None else nn.Embedding(num_classes, width)

    def _map(self, kept: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self.conv1(kept)
        embedded = embed_label(self.label, label, len(kept))
        if not isinstance(embedded, float):
            h = h + embedded[:, :, None, None]
        log_scale, shift = self.conv3(F.relu(self.conv2(F.relu(h)))).chunk(2, dim=1)
        # Between 1/e and e: a product of many steps still reaches any scale, and none of them can explode.
        return torch.tanh(log_scale), shift

    def forward(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        log_scale, shift = self._map(kept, label)
        return torch.cat([kept, changed * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, label: Tensor | None) -> Tensor:
        kept, changed = y[:, : self.kept], y[:, self.kept :]
        log_scale, shift = self._map(kept, label)
        return torch.cat([kept, (changed - shift) * torch.exp(-log_scale)], 1)


class _Logits(nn.Module):
    """From pixels in [-1, 1], with noise of up to half a level of 8 bits beyond, to logits."""

    EDGE = 1.0 + 1.0 / 255.0

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        slope = (1.0 - 2.0 * self.margin) / (2.0 * self.EDGE)
        p = self.margin + slope * (x + self.EDGE)
        logs = torch.log(p), torch.log1p(-p)
        return logs[0] - logs[1], (math.log(slope) - logs[0] - logs[1]).flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        slope = (1.0 - 2.0 * self.margin) / (2.0 * self.EDGE)
        return (torch.sigmoid(y) - self.margin) / slope - self.EDGE


class CouplingFlow(nn.Module):
    """An invertible map between pictures and normal vectors of as many numbers.

    Args:
        config: shape.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = _Logits(config.margin)
        levels, channels = [], config.channels
        for level in range(config.levels):
            channels, width = channels * 4, config.width * 2**level
            steps: list[_Layer] = []
            for _ in range(config.steps):
                steps += [_ActNorm(channels), _Mixing(channels), _Coupling(channels, width, config.num_classes)]
            levels.append(nn.ModuleList(steps))
            channels = channels // 2 if level < config.levels - 1 else channels
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map pictures to latents.

        Args:
            x: ``(B, C, H, W)`` in [-1 - 1/255, 1 + 1/255].
            label: ``(B,)`` classes.

        Returns:
            Latents ``(B, C H W)`` and the log-determinants ``(B,)``.
        """
        return self._encoded(x, label, fit=False)

    @torch.no_grad()
    def fit(self, x: Tensor, label: Tensor | None = None) -> None:
        """Set scales and shifts so that a batch of data leaves each step's first layer with mean 0 and variance 1.

        To be called once before training: without it the first steps are spent on this.

        Args:
            x: ``(B, C, H, W)``, as ``forward`` takes them.
            label: ``(B,)`` classes.
        """
        self._encoded(x, label, fit=True)

    def log_density(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the log-density of pictures in nats, by unit of data: ``(B,)``."""
        z, log_det = self._encoded(x, label, fit=False)
        return -0.5 * (z.square() + math.log(2.0 * math.pi)).sum(1) + log_det

    def inverse(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map latents ``(B, C H W)`` to pictures ``(B, C, H, W)``; far from the data they may leave [-1, 1]."""
        pieces = self._pieces(z)
        h = pieces.pop()
        for number, steps in reversed(list(enumerate(self.levels))):
            if number < len(self.levels) - 1:
                h = torch.cat([h, pieces.pop()], 1)
            for layer in reversed(list(_layers(steps))):
                h = layer.inverse(h, label)
            h = F.pixel_shuffle(h, 2)
        return self.logits.inverse(h)

    def _encoded(self, x: Tensor, label: Tensor | None, *, fit: bool) -> tuple[Tensor, Tensor]:
        h, log_det = self.logits(x)
        pieces: list[Tensor] = []
        for number, steps in enumerate(self.levels):
            h = F.pixel_unshuffle(h, 2)
            for layer in _layers(steps):
                if fit and isinstance(layer, _ActNorm):
                    layer.fit(h)
                h, change = layer(h, label)
                log_det = log_det + change
            if number < len(self.levels) - 1:
                h, leaving = h.chunk(2, dim=1)
                pieces.append(leaving)
        pieces.append(h)
        return torch.cat([piece.flatten(1) for piece in pieces], 1), log_det

    def _pieces(self, z: Tensor) -> list[Tensor]:
        """Cut latents into what left at each level, and what remained."""
        channels, (height, width) = self.config.channels, self.config.size
        shapes = []
        for number in range(len(self.levels)):
            channels, height, width = 4 * channels, height // 2, width // 2
            if number < len(self.levels) - 1:
                channels //= 2
            shapes.append((channels, height, width))
        parts = torch.split(z, [math.prod(shape) for shape in shapes], dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _layers(steps: nn.Module) -> list[_Layer]:
    return [layer for layer in steps.children() if isinstance(layer, _Layer)]
