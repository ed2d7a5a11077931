"""The optimiser of a run and its learning rate.

Schedules count *examples*, not steps, so that a warm-up means the same thing at every batch size.

Sources:
    Loshchilov, Hutter 2019 (arXiv 1711.05101): AdamW. Loshchilov, Hutter 2017 (1608.03983), eq. 5: the cosine.
    Karras et al. 2024 (2312.02696), eq. 67: the inverse square root.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unfog.checkpoint import require_same_tensors
from unfog.diffusion.checks import require


class Decay(ABC):
    """How the learning rate falls after the warm-up."""

    @abstractmethod
    def factor(self, seen: float, begin: float, end: float) -> float:
        """Return the factor on the peak rate.

        Args:
            seen: examples seen, in [0, end].
            begin: examples at which the warm-up is over.
            end: examples of the whole run.
        """


@dataclass(frozen=True)
class Constant(Decay):
    """No decay."""

    def factor(self, seen: float, begin: float, end: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Decay):
    """Half a cosine from the end of the warm-up to the end of the run.

    Attributes:
        final: the factor at the end, in [0, 1].
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        require(0.0 <= self.final <= 1.0, f"Cosine.final in [0, 1], got {self.final}")

    def factor(self, seen: float, begin: float, end: float) -> float:
        """Return 1 at ``begin``, the mean of 1 and ``final`` half way, ``final`` at ``end``."""
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * _progress(seen, begin, end)))


@dataclass(frozen=True)
class InverseSqrt(Decay):
    """Constant up to a number of examples, then falling with their square root.

    Attributes:
        reference: examples at which the fall begins (``t_ref`` of the source, there in steps); the rate is half its
            peak at four times as many.
    """

    reference: int

    def __post_init__(self) -> None:
        require(self.reference > 0, f"InverseSqrt.reference (examples) above 0, got {self.reference}")

    def factor(self, seen: float, begin: float, end: float) -> float:
        """Return ``1 / sqrt(max(seen / reference, 1))``."""
        return 1.0 / math.sqrt(max(seen / self.reference, 1.0))


@dataclass(frozen=True)
class LinearToZero(Decay):
    """Constant, then a straight line to zero at the end of the run.

    Attributes:
        begin: examples at which the line begins, or the end of the warm-up if that is later.
    """

    begin: int = 0

    def __post_init__(self) -> None:
        require(self.begin >= 0, f"LinearToZero.begin (examples) of at least 0, got {self.begin}")

    def factor(self, seen: float, begin: float, end: float) -> float:
        """Return 1 until the line begins and 0 at ``end``."""
        return 1.0 - _progress(seen, max(begin, float(self.begin)), end)


def _progress(seen: float, begin: float, end: float) -> float:
    if end <= begin:
        return 0.0 if seen < end else 1.0
    return min(max((seen - begin) / (end - begin), 0.0), 1.0)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its clipping and its learning rate.

    Attributes:
        lr: peak learning rate.
        betas: decay of the two moments (Adam's published values).
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, applied to matrices and filters only (see ``build_optimizer``).
        clip: largest global norm of a step's gradient; None leaves it as it is.
        warmup_examples: examples over which the rate rises linearly from 0 to its peak.
        decay: how it falls afterwards.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    warmup_examples: int = 0
    decay: Decay = field(default_factory=Constant)

    def __post_init__(self) -> None:
        require(self.lr > 0 and math.isfinite(self.lr), f"a finite lr above 0, got {self.lr}")
        require(
            len(self.betas) == 2 and all(0.0 <= beta < 1.0 for beta in self.betas),
            f"two betas in [0, 1), got {self.betas}",
        )
        require(self.eps > 0, f"eps above 0, got {self.eps}")
        require(self.weight_decay >= 0, f"weight_decay of at least 0, got {self.weight_decay}")
        require(self.clip is None or self.clip > 0, f"clip above 0, or None for no clipping, got {self.clip}")
        require(self.warmup_examples >= 0, f"warmup_examples of at least 0, got {self.warmup_examples}")


def learning_rate(config: OptimizerConfig, examples_seen: float, total_examples: int) -> float:
    """Return the learning rate after a number of examples.

    Args:
        config: peak, warm-up and decay.
        examples_seen: examples since the start of the run. The trainer gives the middle of each batch: no step then
            has the rate 0, and the area under the schedule is that of every other batch size.
        total_examples: examples of the whole run.
    """
    warmup = float(config.warmup_examples)
    rise = 1.0 if examples_seen >= warmup else examples_seen / warmup
    return config.lr * rise * config.decay.factor(examples_seen, warmup, float(total_examples))


def decayed_parameters(module: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay applies to: matrices and filters.

    Biases, the gains of normalisations and other parameters with fewer than two axes longer than one are left out,
    and so are the tables of ``nn.Embedding``. A position table held as a bare parameter is a matrix like any other.
    """
    tables = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag)
        for parameter in part.parameters(recurse=False)
    }
    return {
        name
        for name, parameter in module.named_parameters()
        if id(parameter) not in tables and sum(size > 1 for size in parameter.shape) >= 2
    }


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.AdamW:
    """Make the optimiser of a module's trainable parameters.

    Its state is made at once (zeros, as AdamW would at the first step), so that a saved state has the same keys at
    every step and a missing one can be told from one that was never there.

    Raises:
        ValueError: if nothing in the module is trainable.
    """
    decayed = decayed_parameters(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    require(bool(trainable), f"a module with trainable parameters, got {type(module).__name__} without any")
    matrices = [p for name, p in trainable.items() if name in decayed]
    others = [p for name, p in trainable.items() if name not in decayed]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    for parameter in trainable.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the state of an optimiser by ``parameter name/field``, not copied."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"optimiser state {name}/{key} is a {type(value).__name__}; only tensors are saved")
            tensors[f"{name}/{key}"] = value
    return tensors


@torch.no_grad()
def load_optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a saved state into an optimiser in place, which keeps the memory layout of each tensor.

    Raises:
        ValueError: if a key is missing, unexpected or of another shape or dtype.
    """
    own = optimizer_tensors(optimizer, module)
    require_same_tensors(own, tensors, "optimiser state")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
