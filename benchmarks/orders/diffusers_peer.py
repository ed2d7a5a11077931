"""diffusers' schedulers over levels of noise that are given to them, in float64.

A scheduler asks for eps where x has unit variance, ``x = y / sqrt(1 + s^2)`` with s = sigma / alpha, or (Euler, Heun,
LMS) for y itself. Its levels are a table of numbers, which is replaced after ``set_timesteps``: so all schedulers take
the same steps. DDIM and PNDM have no such table but go down the trained levels: they get trained levels that are the
steps (PNDM: with one half-way in time between each two). What would lower the order at the end of a trajectory is
switched off, for the interval ends before the data.

Its modules name ``torch.float32`` in some of their steps; there it is taken for ``torch.float64``, so that what is
measured is the method and not a rounding.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.orders.peer import Denoise, Peer

with warnings.catch_warnings():
    # Importing diffusers warns of what its own dependencies have deprecated.
    warnings.simplefilter("ignore")
    import diffusers

_MOST = 1000  # trained levels of the schedulers whose table is replaced


class _Double(ModuleType):
    """torch, but for its name of single precision."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name == "float32" else getattr(torch, name)


@contextmanager
def _scheduler(name: str, settings: dict[str, Any]) -> Iterator[Any]:
    """Make a scheduler that computes in float64 as long as it is used here."""
    kind = getattr(diffusers, name)
    module = importlib.import_module(kind.__module__)
    module.torch = _Double()  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated algorithms, which are measured too
            made = kind(**settings)
        yield made
    finally:
        module.torch = torch  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Levelled(Peer):
    """A scheduler with a table of sigma / alpha.

    Attributes:
        name: of its class, and what is set.
        claimed: its order.
        settings: of the scheduler.
        of_unit: whether its state is of unit variance, rather than y.
    """

    name: str
    claimed: int
    scheduler: str
    settings: tuple[tuple[str, Any], ...] = ()
    of_unit: bool = True

    def evaluations(self, steps: int) -> int | None:
        return steps

    def solve(self, denoise: Denoise, y: Tensor, levels: Callable[[int], Tensor], steps: int) -> Tensor:
        table = levels(steps)
        settings = dict(self.settings)
        if self.scheduler == "DPMSolverSinglestepScheduler" and steps % settings["solver_order"]:
            settings["lower_order_final"] = True  # steps that do not fill a group of its stages
        with _scheduler(self.scheduler, {"num_train_timesteps": _MOST, **settings}) as scheduler:
            scheduler.set_timesteps(steps)
            scheduler.sigmas = table
            scheduler.timesteps = torch.arange(steps, 0, -1, dtype=torch.float64)
            if self.scheduler == "HeunDiscreteScheduler":
                scheduler.sigmas = torch.cat([table[:1], table[1:-1].repeat_interleave(2), table[-1:]])
                scheduler.timesteps = torch.arange(2 * steps - 1, 0, -1, dtype=torch.float64)
            scheduler.set_begin_index(0)
            unit = (1 + table**2).sqrt() if self.of_unit else torch.ones_like(table)
            x = y / unit[0]
            for index, t in enumerate(scheduler.timesteps):
                scheduler.scale_model_input(x, t)
                # A second stage is asked at the level that the step leads to.
                at = (index + 1) // 2 if self.scheduler == "HeunDiscreteScheduler" else index
                state = x * unit[at]
                x = scheduler.step((state - denoise(state, table[at])) / table[at], t, x).prev_sample
            return x * unit[-1]


@dataclass(frozen=True)
class Heun(Levelled):
    """Two evaluations a step, one on the last."""

    def evaluations(self, steps: int) -> int | None:
        return 2 * steps - 1


@dataclass(frozen=True)
class Trained(Peer):
    """A scheduler that goes down trained levels.

    Attributes:
        between: trained levels a step.
        extra: evaluations besides one a step.
        least: steps that it needs.
    """

    name: str
    claimed: int
    scheduler: str
    settings: tuple[tuple[str, Any], ...] = ()
    between: int = 1
    extra: int = 0
    least: int = 1

    def evaluations(self, steps: int) -> int | None:
        return steps + self.extra if steps >= self.least else None

    def solve(self, denoise: Denoise, y: Tensor, levels: Callable[[int], Tensor], steps: int) -> Tensor:
        # From the noisiest to the last but one, and the other way round, as trained levels are counted.
        fine = levels(self.between * steps)
        trained = fine[: len(fine) - self.between].flip(0)
        if self.between > 1:
            # Level 0 is the last but one of the steps; the level above the noisiest step is never asked for.
            trained = torch.cat([trained, trained[-1:].expand(self.between - 1)])
        count = len(trained)
        with _scheduler(self.scheduler, {"num_train_timesteps": count, **dict(self.settings)}) as scheduler:
            scheduler.set_timesteps(steps)
            scheduler.alphas_cumprod = 1 / (1 + trained**2)
            scheduler.final_alpha_cumprod = 1 / (1 + fine[-1] ** 2)
            x = y / (1 + fine[0] ** 2).sqrt()
            for t in scheduler.timesteps.tolist():
                level = trained[t]
                state = x * (1 + level**2).sqrt()
                x = scheduler.step((state - denoise(state, level)) / level, t, x).prev_sample
            return x * (1 + fine[-1] ** 2).sqrt()


_OPEN = (("lower_order_final", False), ("final_sigmas_type", "sigma_min"))


def _multistep(order: int, algorithm: str, solver: str = "midpoint") -> Levelled:
    kind = "" if solver == "midpoint" or order != 2 else f", {solver}"
    settings = (("solver_order", order), ("algorithm_type", algorithm), ("solver_type", solver), *_OPEN)
    return Levelled(f"DPMSolverMultistep {algorithm} {order}{kind}", order, "DPMSolverMultistepScheduler", settings)


def _singlestep(order: int, algorithm: str) -> Levelled:
    settings = (("solver_order", order), ("algorithm_type", algorithm), *_OPEN)
    return Levelled(f"DPMSolverSinglestep {algorithm} {order}", order, "DPMSolverSinglestepScheduler", settings)


def _unipc(order: int, kind: str, *, of_x0: bool = True) -> Levelled:
    settings = (("solver_order", order), ("solver_type", kind), ("predict_x0", of_x0), *_OPEN)
    name = f"UniPCMultistep {order}, {kind}" + ("" if of_x0 else ", of eps")
    return Levelled(name, order + 1, "UniPCMultistepScheduler", settings)


def _deis(order: int) -> Levelled:
    settings = (("solver_order", order), ("lower_order_final", False))
    return Levelled(f"DEISMultistep {order}", order, "DEISMultistepScheduler", settings)


PEERS: dict[str, Peer] = {
    "ddim": Trained("DDIM", 1, "DDIMScheduler", (("clip_sample", False),)),
    "euler": Levelled("EulerDiscrete", 1, "EulerDiscreteScheduler", of_unit=False),
    "heun": Heun("HeunDiscrete", 2, "HeunDiscreteScheduler", of_unit=False),
    **{f"dpm {k}m": _multistep(k, "dpmsolver") for k in (1, 2, 3)},
    **{f"dpm++ {k}m": _multistep(k, "dpmsolver++") for k in (1, 2, 3)},
    "dpm 2m heun": _multistep(2, "dpmsolver", "heun"),
    "dpm++ 2m heun": _multistep(2, "dpmsolver++", "heun"),
    **{f"dpm {k}s": _singlestep(k, "dpmsolver") for k in (1, 2, 3)},
    **{f"dpm++ {k}s": _singlestep(k, "dpmsolver++") for k in (1, 2, 3)},
    **{f"unipc {k} {kind}": _unipc(k, kind) for k in (1, 2, 3) for kind in ("bh1", "bh2")},
    "unipc 2 of eps": _unipc(2, "bh2", of_x0=False),
    **{f"deis {k}": _deis(k) for k in (1, 2, 3)},
    # By its paper of second order, whatever its four estimates.
    "pndm": Trained("PNDM", 2, "PNDMScheduler", (), between=2, extra=9, least=4),
    "plms": Trained("PNDM without Runge-Kutta", 2, "PNDMScheduler", (("skip_prk_steps", True),), extra=1, least=2),
    "lms 4": Levelled("LMSDiscrete", 4, "LMSDiscreteScheduler", of_unit=False),
}
