"""What the values of a recipe are called in YAML and on the command line.

A node of an abstract type is written as a mapping whose ``kind`` is one of the names listed here, or, where nothing
else needs saying, as that name alone: ``{kind: rectified_flow, shift: 3.0}``, ``cosine``. Hyphens may stand for
underscores.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unfog.checkpoint import JSON
from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.nn.embed import Fourier, Sinusoidal, TimeEmbedding
from unfog.diffusion.nn.unet import UNetConfig
from unfog.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, Score, V
from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    Schedule,
    SubVariancePreserving,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from unfog.diffusion.times import Levels, LogitNormal, LogNormal, LogUniform, Stratified, Times, Uniform
from unfog.diffusion.weighting import Constant, EDMWeight, MinSNR, Sigmoid, Weight
from unfog.sampling.gaussian import DDIM, DDPM, DPMSolverPP2M, Heun
from unfog.sampling.grid import Karras, Leading, Linspace, LogSNRUniform, Quadratic, TimeGrid, Trailing
from unfog.sampling.sampler import Sampler
from unfog.training.ema import Average, Exponential, Power
from unfog.training.optim import Constant as ConstantRate
from unfog.training.optim import Cosine as CosineRate
from unfog.training.optim import Decay, InverseSqrt, LinearToZero


@dataclass(frozen=True)
class Table(ABC):
    """A published table of betas by its name, so that a recipe need not list its numbers.

    Attributes:
        steps: number of levels.
        clean: what t = 0 means.
    """

    steps: int = 1000
    clean: CleanEnd = CleanEnd.EXACT

    @abstractmethod
    def betas(self) -> Tensor:
        """Return the betas, ``(steps,)`` float64."""

    def schedule(self) -> Tabulated:
        """Return the schedule that the name stands for."""
        return Tabulated.from_betas(self.betas(), self.clean)


@dataclass(frozen=True)
class LinearBetas(Table):
    """DDPM's."""

    def betas(self) -> Tensor:
        return linear_betas(self.steps)


@dataclass(frozen=True)
class ScaledLinearBetas(Table):
    """Stable Diffusion's."""

    def betas(self) -> Tensor:
        return scaled_linear_betas(self.steps)


@dataclass(frozen=True)
class CosineBetas(Table):
    """Nichol and Dhariwal's."""

    def betas(self) -> Tensor:
        return cosine_betas(self.steps)


TABLES = (LinearBetas, ScaledLinearBetas, CosineBetas)

KINDS: Mapping[Any, Mapping[str, type]] = {
    Schedule: {
        "variance_preserving": VariancePreserving,
        "sub_variance_preserving": SubVariancePreserving,
        "cosine": Cosine,
        "rectified_flow": RectifiedFlow,
        "variance_exploding": VarianceExploding,
        "linear_betas": LinearBetas,
        "scaled_linear_betas": ScaledLinearBetas,
        "cosine_betas": CosineBetas,
        "tabulated": Tabulated,
    },
    Parameterization: {"eps": Eps, "score": Score, "x0": X0, "v": V, "flow": Flow, "edm": EDM},
    Times: {
        "uniform": Uniform,
        "levels": Levels,
        "log_normal": LogNormal,
        "log_uniform": LogUniform,
        "logit_normal": LogitNormal,
        "stratified": Stratified,
    },
    Weight: {"constant": Constant, "min_snr": MinSNR, "edm": EDMWeight, "sigmoid": Sigmoid},
    Sampler: {"ddpm": DDPM, "ddim": DDIM, "heun": Heun, "dpmpp": DPMSolverPP2M},
    TimeGrid: {
        "trailing": Trailing,
        "leading": Leading,
        "linspace": Linspace,
        "quadratic": Quadratic,
        "log_snr_uniform": LogSNRUniform,
        "karras": Karras,
    },
    Decay: {
        "constant": ConstantRate,
        "cosine": CosineRate,
        "inverse_sqrt": InverseSqrt,
        "linear_to_zero": LinearToZero,
    },
    float | Average: {"power": Power, "exponential": Exponential},
    UNetConfig | DiTConfig: {"unet": UNetConfig, "dit": DiTConfig},
    TimeEmbedding: {"sinusoidal": Sinusoidal, "fourier": Fourier},
}
"""The classes of each type that a recipe leaves open, by name; a type with ``float`` in it may be a number as well."""

SHORTHANDS: Mapping[Any, Mapping[str, Mapping[str, JSON]]] = {
    Sampler: {
        "ddpm_beta": {"kind": "ddpm", "variance": "beta"},
        "euler": {"kind": "ddim"},
        "sde_dpmpp": {"kind": "dpmpp", "eta": 1.0},
    },
}
"""Names for a kind with some of its settings; they are written out in full when a recipe is saved."""


def names(kind_of: Any) -> list[str]:
    """Return the names that may stand for a node of a type."""
    return [*KINDS[kind_of], *SHORTHANDS.get(kind_of, {})]
