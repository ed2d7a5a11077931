"""Small image classifiers, trained in a minute or less on whatever is at hand.

They serve twice: their pooled activations are the features that images are measured with (``features``), and
their accuracy after training on samples tells what the samples are worth (``accuracy``).

Source: residual units with pre-activation, K. He et al., "Identity mappings in deep residual networks", 2016,
arXiv 1603.05027.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.batch import Batches
from unfog.data.dataset import ArrayDataset, Dataset, to_uint8
from unfog.diffusion.checks import require
from unfog.diffusion.random import Purpose, Rng
from unfog.tasks.classification import Augment, Classification
from unfog.training.config import TrainConfig
from unfog.training.optim import Cosine, OptimizerConfig
from unfog.training.trainer import Trainer

SMALLEST = 8
"""Least height and width of images."""

CHUNK = 500
"""Images that pass through a network at once when it is used."""

SETTLING = 20
"""Batches over which the statistics of batch normalisation are taken after training."""


@dataclass(frozen=True)
class Budget:
    """How large a classifier is and how long it is trained.

    Attributes:
        steps: most optimiser steps.
        epochs: most passes through the examples; whichever of the two ends first.
        batch_size: examples a step, at least 2 (batch normalisation needs a spread).
        width: channels of the first stage; the features have four times as many dimensions.
        lr: peak learning rate of AdamW; a tenth of the run is warm-up, the rest a cosine to zero.
        weight_decay: decoupled decay of filters and matrices.
        dropout: share of the pooled features that is dropped, in [0, 1).
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
    """

    steps: int = 1000
    epochs: int = 30
    batch_size: int = 128
    width: int = 16
    lr: float = 4e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps of at least 1, got {self.steps}")
        require(self.epochs >= 1, f"epochs of at least 1, got {self.epochs}")
        require(self.batch_size >= 2, f"a batch_size of at least 2, got {self.batch_size}")
        require(self.width >= 1, f"a width of at least 1, got {self.width}")
        require(0 <= self.dropout < 1, f"dropout in [0, 1), got {self.dropout}")

    def steps_for(self, count: int) -> int:
        """Return the optimiser steps for a set of ``count`` examples."""
        return min(self.steps, math.ceil(self.epochs * count / self.batch_size))


class Residual(nn.Module):
    """Two 3x3 convolutions beside an identity, each behind batch normalisation and a rectifier."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        # The unit starts as the identity, which lets the first steps be large.
        nn.init.zeros_(self.conv2.weight)
        same = channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
        h = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        pooled = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        total: Tensor = self.skip(pooled) + h
        return total


class FeatureNetwork(nn.Module):
    """A residual convolutional classifier whose pooled activations are the features.

    Args:
        channels: of the images.
        classes: number of logits.
        width: channels of the first stage; ``4 * width`` is the dimension of the features.
        stem_stride: by how much the first convolution shrinks the images; ``stem_stride_for`` gives a value
            that leaves 8 to 16 pixels.
        dropout: share of the features that is dropped before the logits in training, in [0, 1).
    """

    def __init__(
        self, channels: int, classes: int, *, width: int = 16, stem_stride: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        require(channels >= 1, f"at least 1 channel, got {channels}")
        require(classes >= 2, f"at least 2 classes, got {classes}")
        require(stem_stride >= 1, f"a stem_stride of at least 1, got {stem_stride}")
        self.dimension = 4 * width
        self.stem = nn.Conv2d(channels, width, 2 * stem_stride + 1, stem_stride, stem_stride)
        self.stages = nn.Sequential(
            Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.norm = nn.BatchNorm2d(self.dimension)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.dimension, classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` in [-1, 1] to features ``(B, 4 * width)``, not below zero."""
        return F.relu(self.norm(self.stages(self.stem(x)))).mean((-2, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` in [-1, 1] to logits ``(B, classes)``."""
        logits: Tensor = self.head(self.dropout(self.features(x)))
        return logits


def too_small(size: tuple[int, ...]) -> str | None:
    """Say why a classifier cannot look at images of this height and width: a sentence, or None where it can."""
    if len(size) == 2 and min(size) >= SMALLEST:
        return None
    return (
        f"classifiers look at images of {SMALLEST} x {SMALLEST} pixels or more, these are {' x '.join(map(str, size))}"
    )


def stem_stride_for(size: tuple[int, ...]) -> int:
    """Return the power of two that brings the longer side of an image to 16 pixels or fewer.

    Raises:
        ValueError: if the images are not two-dimensional or a side is below 8.
    """
    small = too_small(size)
    require(small is None, f"other images: {small}")
    stride = 1
    while stride * 16 < max(size):
        stride *= 2
    return stride


@dataclass(frozen=True)
class Shift:
    """Move each image by a few whole pixels, repeating its border.

    Attributes:
        share: greatest shift as a share of the side, rounded to whole pixels but at least one.
    """

    share: float = 1 / 14

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        """Return moved images of the shape of ``x``, ``(B, C, H, W)``; draws under ``Purpose.AUGMENT``."""
        uniform = rng.uniform((2,), Purpose.AUGMENT)
        index = [self._indices(uniform[:, i], x.shape[2 + i], x.device) for i in (0, 1)]
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        moved = x.permute(0, 2, 3, 1)[batch, index[0][:, :, None], index[1][:, None, :]]  # (B, H, W, C)
        return moved.permute(0, 3, 1, 2)

    def _indices(self, uniform: Tensor, side: int, device: torch.device) -> Tensor:
        reach = max(1, round(self.share * side))
        shift = (uniform * (2 * reach + 1)).floor().long() - reach
        return (torch.arange(side, device=device) + shift[:, None]).clamp(0, side - 1)


@dataclass(frozen=True)
class Affine:
    """Turn, scale and move each image a little, with linear interpolation, repeating its border.

    Attributes:
        degrees: greatest turn to either side.
        scale: greatest natural logarithm of the scale, either way.
        shift: greatest shift as a share of the side.
    """

    degrees: float = 10.0
    scale: float = 0.1
    shift: float = 0.08

    def __call__(self, x: Tensor, rng: Rng) -> Tensor:
        """Return changed images of the shape of ``x``, ``(B, C, H, W)``; draws under ``Purpose.AUGMENT``."""
        draws = 2 * rng.uniform((4,), Purpose.AUGMENT) - 1  # (B, 4) in (-1, 1)
        angle = draws[:, 0] * math.radians(self.degrees)
        scale = torch.exp(draws[:, 1] * self.scale)
        # The grid spans [-1, 1] along both axes: a turn of pixels is sheared by the aspect ratio there.
        aspect = x.shape[-1] / x.shape[-2]
        cosine, sine = angle.cos() * scale, angle.sin() * scale
        rows = [
            torch.stack([cosine, -sine / aspect, 2 * self.shift * draws[:, 2]], 1),
            torch.stack([sine * aspect, cosine, 2 * self.shift * draws[:, 3]], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1).to(x), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def fit(
    network: nn.Module, batches: Batches, classes: int, steps: int, budget: Budget, augment: Augment, *, seed: int
) -> None:
    """Train a classifier in place and leave it in evaluation mode.

    Args:
        network: maps ``(B, C, H, W)`` to ``(B, classes)``.
        batches: fields ``x0`` and ``label``.
        classes: number of classes.
        steps: optimiser steps.
        budget: everything else about the training.
        augment: applied to every batch.
        seed: of dropout and augmentation.
    """
    task = Classification(network, classes, label_smoothing=budget.label_smoothing, augment=augment)
    optimizer = OptimizerConfig(
        lr=budget.lr,
        betas=(0.9, 0.99),
        weight_decay=budget.weight_decay,
        warmup_examples=steps * budget.batch_size // 10,
        decay=Cosine(),
    )
    config = TrainConfig(
        steps=steps, batch_size=budget.batch_size, seed=seed, channels_last=True, ema=(), optimizer=optimizer
    )
    # No averages of the weights: the rate ends at zero, and the batch statistics would belong to other weights.
    trainer = Trainer(task, batches, config)
    for _ in trainer:
        pass
    _settle(network, batches, augment, trainer.examples, budget.batch_size, seed)
    network.eval()


@torch.no_grad()
def _settle(network: nn.Module, batches: Batches, augment: Augment, start: int, batch_size: int, seed: int) -> None:
    """Replace the running statistics of batch normalisation by plain means over some batches of the final network.

    The running ones lag behind the weights; after a few dozen steps they still hold a part of their initial values.

    Source: Y. Wu and J. Johnson, "Rethinking 'batch' in BatchNorm", 2021, arXiv 2105.07576, section 3.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    device = next(network.parameters()).device
    # The normalisations alone: dropout would draw from the global generator.
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    for number in range(SETTLING):
        batch = batches.take(start + number * batch_size, batch_size)
        rng = Rng.of(seed, batch.ids, step=batch.epochs, position=batch.positions, device=device)
        network(augment(batch.values["x0"].to(device), rng))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def build(channels: int, classes: int, size: tuple[int, ...], budget: Budget, *, seed: int) -> FeatureNetwork:
    """Return a fresh network whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureNetwork(
            channels, classes, width=budget.width, stem_stride=stem_stride_for(size), dropout=budget.dropout
        )


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor in pieces of ``CHUNK`` rows."""
    for start in range(0, len(tensor), CHUNK):
        yield tensor[start : start + CHUNK]


@torch.inference_mode()
def logits(network: nn.Module, x: Tensor) -> Tensor:
    """Return what a network in evaluation mode answers to images ``(N, C, H, W)``: ``(N, classes)`` on the CPU."""
    device = next(network.parameters()).device
    return torch.cat([network(piece.to(device)).cpu() for piece in pieces(x)])


def to_pixels(images: Tensor) -> Tensor:
    """Return images as uint8, which is what data sets hold; samples are measured as they would be saved.

    Args:
        images: ``(N, C, H, W)``, uint8 or floating point in [-1, 1].

    Raises:
        TypeError: if they are neither.
        ValueError: if the shape is another one or a value lies outside.
    """
    require(images.ndim == 4 and len(images) > 0, f"images (N, C, H, W) with N >= 1, got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images
    low, high = (float(v) for v in images.aminmax())
    # A rounding error beyond the ends changes no pixel; a NaN fails every comparison.
    require(
        low >= -1.001 and high <= 1.001,
        f"floats in [-1, 1] (clamp them, or give uint8), got values from {low:.4g} to {high:.4g}",
    )
    return to_uint8(images)


def subset(dataset: Dataset, ids: Tensor) -> ArrayDataset:
    """Return some examples of a data set as a data set of their own, in the order of ``ids``."""
    values = dataset.gather(ids)
    label = values.get("label")
    return ArrayDataset(
        to_uint8(values["x0"]).numpy(),
        None if label is None else label.numpy(),
        name=dataset.info.name,
        classes=None if label is None else dataset.info.classes,
    )
