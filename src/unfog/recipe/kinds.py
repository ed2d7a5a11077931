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
from unfog.diffusion.checks import require
from unfog.diffusion.coupling import Coupling, Independent, MinibatchOT
from unfog.diffusion.curves import LogLinear, Shifted, Spline
from unfog.diffusion.curves import Sigmoid as SigmoidSchedule
from unfog.diffusion.learned import Learned
from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.nn.embed import Fourier, Sinusoidal, TimeEmbedding
from unfog.diffusion.nn.encoder import EncoderConfig
from unfog.diffusion.nn.hybrid import HybridConfig
from unfog.diffusion.nn.positions import Learned as LearnedPositions
from unfog.diffusion.nn.positions import Positions, Rotary, Sines
from unfog.diffusion.nn.unet import UNetConfig
from unfog.diffusion.nn.uvit import UViTConfig
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
from unfog.diffusion.tables import quadratic_betas, sigmoid_betas, zero_terminal
from unfog.diffusion.times import (
    Curriculum,
    Importance,
    Levels,
    LogitNormal,
    LogNormal,
    LogUniform,
    Stratified,
    Times,
    Uniform,
)
from unfog.diffusion.weighting import P2, Constant, EDMWeight, MinSNR, Sigmoid, Uncertainty, Weight
from unfog.recipe.networks import Network
from unfog.sampling.adaptive import RK45
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.fitted import Fitted, Given
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import Karras, Leading, Linspace, LogSNRUniform, Quadratic, TimeGrid, Trailing
from unfog.sampling.guidance.bounds import Bounds, Clip, DynamicThreshold
from unfog.sampling.langevin import AnnealedLangevin, PredictorCorrector
from unfog.sampling.multistep import DEIS, PNDM, DPMSolverMultistep, DPMSolverPP2M, DPMSolverPP3M, UniPC
from unfog.sampling.picard import Picard
from unfog.sampling.restart import Restart
from unfog.sampling.sampler import Sampler
from unfog.sampling.singlestep import RK4, DPMSolver, DPMSolverPP, DPMSolverPPSDE, EDMChurn
from unfog.tasks.hybrid import FixedVariance, LearnedVariance, ReverseVariance
from unfog.training.ema import Average, Exponential, Power
from unfog.training.optim import Constant as ConstantRate
from unfog.training.optim import Cosine as CosineRate
from unfog.training.optim import Decay, InverseSqrt, LinearToZero


class Named(ABC):
    """Stands for a table of levels, so that a recipe need not list its numbers."""

    @abstractmethod
    def schedule(self) -> Tabulated:
        """Return the schedule that the name stands for."""


@dataclass(frozen=True)
class Table(Named):
    """A published table of betas by its name.

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


@dataclass(frozen=True)
class QuadraticBetas(Table):
    """Linear in their square root, between DDPM's ends."""

    def betas(self) -> Tensor:
        return quadratic_betas(self.steps)


@dataclass(frozen=True)
class SigmoidBetas(Table):
    """Along the logistic function, between DDPM's ends."""

    def betas(self) -> Tensor:
        return sigmoid_betas(self.steps)


TABLES = (LinearBetas, ScaledLinearBetas, CosineBetas, QuadraticBetas, SigmoidBetas)


@dataclass(frozen=True)
class ZeroTerminal(Named):
    """A table rescaled to zero terminal SNR.

    Attributes:
        table: any schedule that is a table.
    """

    table: Schedule

    def __post_init__(self) -> None:
        kind = type(self.table).__name__
        require(isinstance(self.table, Tabulated), f"a table such as linear_betas, which {kind} is not")

    def schedule(self) -> Tabulated:
        assert isinstance(self.table, Tabulated)
        return zero_terminal(self.table)


def name_of(schedule: Tabulated) -> Named | None:
    """Return the name that stands for a table; None if there is none."""
    if schedule.levels <= 20:
        return None
    tables = [table(schedule.levels, schedule.clean) for table in TABLES]
    rescaled = [ZeroTerminal(table.schedule()) for table in tables] if schedule.alphas_cumprod[-1] == 0 else []
    return next((named for named in [*tables, *rescaled] if named.schedule() == schedule), None)


KINDS: Mapping[Any, Mapping[str, type]] = {
    Schedule: {
        "variance_preserving": VariancePreserving,
        "sub_variance_preserving": SubVariancePreserving,
        "cosine": Cosine,
        "rectified_flow": RectifiedFlow,
        "variance_exploding": VarianceExploding,
        "sigmoid": SigmoidSchedule,
        "log_linear": LogLinear,
        "spline": Spline,
        "learned": Learned,
        "shifted": Shifted,
        "linear_betas": LinearBetas,
        "scaled_linear_betas": ScaledLinearBetas,
        "cosine_betas": CosineBetas,
        "quadratic_betas": QuadraticBetas,
        "sigmoid_betas": SigmoidBetas,
        "zero_terminal": ZeroTerminal,
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
        "curriculum": Curriculum,
        "importance": Importance,
    },
    Weight: {
        "constant": Constant,
        "min_snr": MinSNR,
        "p2": P2,
        "edm": EDMWeight,
        "sigmoid": Sigmoid,
        "uncertainty": Uncertainty,
    },
    Coupling: {"independent": Independent, "minibatch_ot": MinibatchOT},
    ReverseVariance: {"fixed": FixedVariance, "learned": LearnedVariance},
    Bounds: {"clip": Clip, "dynamic_threshold": DynamicThreshold},
    Sampler: {
        "ddpm": DDPM,
        "ddpm_learned": LearnedDDPM,
        "ddim": DDIM,
        "heun": Heun,
        "rk4": RK4,
        "dpm_solver": DPMSolver,
        "dpmpp_singlestep": DPMSolverPP,
        "sde_dpmpp_singlestep": DPMSolverPPSDE,
        "edm_churn": EDMChurn,
        "dpmpp": DPMSolverPP2M,
        "dpmpp_3m": DPMSolverPP3M,
        "dpm_solver_multistep": DPMSolverMultistep,
        "deis": DEIS,
        "unipc": UniPC,
        "pndm": PNDM,
        "rk45": RK45,
        "predictor_corrector": PredictorCorrector,
        "annealed_langevin": AnnealedLangevin,
        "restart": Restart,
        "picard": Picard,
        "fitted": Fitted,
    },
    TimeGrid: {
        "trailing": Trailing,
        "leading": Leading,
        "linspace": Linspace,
        "quadratic": Quadratic,
        "log_snr_uniform": LogSNRUniform,
        "karras": Karras,
        "given": Given,
    },
    Decay: {
        "constant": ConstantRate,
        "cosine": CosineRate,
        "inverse_sqrt": InverseSqrt,
        "linear_to_zero": LinearToZero,
    },
    float | Average: {"power": Power, "exponential": Exponential},
    Network: {
        "unet": UNetConfig,
        "dit": DiTConfig,
        "uvit": UViTConfig,
        "hybrid": HybridConfig,
        "encoder": EncoderConfig,
    },
    Positions: {"sines": Sines, "rotary": Rotary, "learned": LearnedPositions},
    TimeEmbedding: {"sinusoidal": Sinusoidal, "fourier": Fourier},
}
"""The classes of each type that a recipe leaves open, by name; a type with ``float`` in it may be a number as well."""

SHORTHANDS: Mapping[Any, Mapping[str, Mapping[str, JSON]]] = {
    Sampler: {
        "ddpm_beta": {"kind": "ddpm", "variance": "beta"},
        "euler": {"kind": "ddim"},
        "euler_ancestral": {"kind": "ddim", "eta": 1.0},
        "dpm2": {"kind": "dpm_solver", "order": 2},
        "dpm2_ancestral": {"kind": "dpm_solver", "order": 2, "eta": 1.0},
        "dpmpp_2s_ancestral": {"kind": "dpmpp_singlestep", "eta": 1.0},
        "lms": {"kind": "deis", "order": 4, "variable": "sigma"},
        "plms": {"kind": "pndm", "runge_kutta": False},
        "sde_dpmpp": {"kind": "dpmpp", "eta": 1.0},
    },
}
"""Names for a kind with some of its settings; they are written out in full when a recipe is saved."""


def names(kind_of: Any) -> list[str]:
    """Return the names that may stand for a node of a type."""
    return [*KINDS[kind_of], *SHORTHANDS.get(kind_of, {})]
