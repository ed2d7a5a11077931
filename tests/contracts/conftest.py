"""Finds every component of layers 0 and 1, so that a new one is tested by existing.

A test that asks for ``schedule``, ``parameterization``, ``weight``, ``density``, ``grid`` or ``sampler`` runs once for
each representative of each concrete class of that interface (``table_sampler``: of the samplers that are tables,
``ode_sampler``: of those that inject no noise). A class whose constructor has defaults needs no entry
below; one that needs arguments, or has interesting settings, gets a line in ``representatives``.
"""

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import unfog.diffusion
import unfog.sampling
from unfog.diffusion.curves import LogLinear, Shifted, Spline
from unfog.diffusion.curves import Sigmoid as SigmoidSchedule
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.learned import Learned, Learner, Live
from unfog.diffusion.parameterization import EDM, X0, Eps, Parameterization, V
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    cosine,
    linear,
    scaled_linear,
)
from unfog.diffusion.tables import zero_terminal
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
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.fitted import Fitted, Given, Stage
from unfog.sampling.gaussian import DDIM, DDPM, Heun, Variable, Variance
from unfog.sampling.grid import Karras, Leading, LogSNRUniform, Quadratic, TimeGrid
from unfog.sampling.langevin import AnnealedLangevin, PredictorCorrector
from unfog.sampling.multistep import (
    DEIS,
    PNDM,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP3M,
    UniPC,
    lms,
)
from unfog.sampling.picard import Picard
from unfog.sampling.restart import Interval, Restart
from unfog.sampling.sampler import Sampler, Step, TableSampler
from unfog.sampling.singlestep import RK4, DPMSolver, DPMSolverPP, DPMSolverPPSDE, EDMChurn
from unfog.sampling.table import Grid

with warnings.catch_warnings():
    # The first forward differentiation of a process makes torch 2.13 import a module that warns of torch.jit.script.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    VariancePreserving().rates(torch.tensor(0.5))

INTERFACES: dict[str, type] = {
    "schedule": Schedule,
    "parameterization": Parameterization,
    "weight": Weight,
    "density": Times,
    "grid": TimeGrid,
    "sampler": Sampler,
}


def live() -> Live:
    """A learner's schedule away from where it began."""
    learner = Learner(Learned(parts=7)).requires_grad_(False)
    learner.logits += torch.linspace(-1.0, 1.5, 7)
    learner.ends += torch.tensor([-1.0, 0.7])
    return learner.live()


@cache
def representatives() -> dict[type, list[Any]]:
    """Return instances of the classes that need arguments or have settings worth testing apart."""
    return {
        # A large beta_max reaches a log-SNR of -50, where logarithms and exponentials lose digits if formed carelessly.
        VariancePreserving: [VariancePreserving(), VariancePreserving(0.5, 100.0)],
        RectifiedFlow: [RectifiedFlow(), RectifiedFlow(3.0), RectifiedFlow(0.4)],
        VarianceExploding: [VarianceExploding(), VarianceExploding(0.5)],
        Tabulated: [
            linear(),
            scaled_linear(),
            scaled_linear(clean=CleanEnd.FIRST_LEVEL),
            cosine(),
            zero_terminal(scaled_linear()),
            zero_terminal(scaled_linear(clean=CleanEnd.FIRST_LEVEL)),
            Tabulated((0.9, 0.1)),
            Tabulated((0.7, 0.0)),
        ],
        SigmoidSchedule: [SigmoidSchedule(), SigmoidSchedule(0.0, 3.0, 0.7)],
        LogLinear: [LogLinear(), LogLinear(20.0, -12.0)],
        Spline: [Spline(10.0, -6.0, (0.0, 0.07, 0.8, 1.0))],
        Shifted: [
            Shifted.for_size(Cosine(), 256),
            Shifted(VariancePreserving(), 0.5),
            Shifted(VarianceExploding(), 0.5),
        ],
        Live: [live()],
        EDM: [EDM(), EDM(1.7)],
        Constant: [Constant(), Constant(Eps()), Constant(X0()), Constant(V()), Constant(EDM())],
        MinSNR: [MinSNR(), MinSNR(1.0)],
        EDMWeight: [EDMWeight(), EDMWeight(1.7)],
        Sigmoid: [Sigmoid(), Sigmoid(-2.0)],
        P2: [P2(), P2(0.3, 0.5)],
        Uncertainty: [Uncertainty(), Uncertainty(P2(), 16)],
        LogNormal: [LogNormal(), LogNormal(0.4, 0.3)],
        LogUniform: [LogUniform(), LogUniform(0.1, 2.0)],
        LogitNormal: [LogitNormal(), LogitNormal(-0.5, 0.6)],
        Stratified: [Stratified(Uniform()), Stratified(LogNormal()), Stratified(Levels())],
        # Over with its first example, so that what is drawn is its density; test_times.py looks at it in between.
        Curriculum: [Curriculum(Uniform(), LogNormal(), 1)],
        Importance: [Importance(Uniform()), Importance(LogNormal(), levels=10)],
        Leading: [Leading(), Leading(offset=1)],
        Quadratic: [Quadratic(), Quadratic(0.8)],
        LogSNRUniform: [LogSNRUniform(), LogSNRUniform(0.05, 20.0)],
        Karras: [Karras(), Karras(3.0, 0.05, 20.0)],
        Given: [Given((0.9, 0.5, 0.2))],
        Fitted: [Fitted(VariancePreserving(), (Stage(1.0, 0.9, (1.0,)), Stage(0.4, 0.35, (1.5, -0.5))))],
        DDPM: [DDPM(), DDPM(Variance.BETA)],
        DDIM: [DDIM(), DDIM(0.5), DDIM(1.0)],
        Heun: [Heun(), Heun(Variable.FLOW)],
        DPMSolverPP2M: [DPMSolverPP2M(), DPMSolverPP2M(0.5), DPMSolverPP2M(1.0)],
        DPMSolverPP3M: [DPMSolverPP3M(), DPMSolverPP3M(published=True)],
        DPMSolverMultistep: [DPMSolverMultistep(3)],
        DEIS: [DEIS(), lms()],
        UniPC: [UniPC(), UniPC(3), UniPC(2, of_noise=True)],
        PNDM: [PNDM(), PNDM(runge_kutta=False)],
        RK4: [RK4(), RK4(Variable.FLOW)],
        DPMSolver: [DPMSolver(2), DPMSolver(3), DPMSolver(2, 1.0)],
        DPMSolverPP: [DPMSolverPP(2), DPMSolverPP(3), DPMSolverPP(2, 0.5)],
        DPMSolverPPSDE: [DPMSolverPPSDE(), DPMSolverPPSDE(0.5)],
        PredictorCorrector: [PredictorCorrector(), PredictorCorrector(EDMChurn(10.0, heun=False), 0.05, 2)],
        AnnealedLangevin: [AnnealedLangevin(repeats=2)],
        Restart: [Restart(), Restart(DDIM(), (Interval(), Interval(2.0, 30.0, 1, 2)))],
        Picard: [Picard(), Picard(DPMSolverPP2M(), 3, 0.0)],
        EDMChurn: [EDMChurn(10.0), EDMChurn(10.0, heun=False)],
    }


@cache
def concrete(interface: type) -> tuple[type, ...]:
    """Return the concrete classes of the library below an interface."""
    for package in (unfog.diffusion, unfog.sampling):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            # Networks know nothing of diffusion, and importing them takes long.
            if not module.name.startswith("unfog.diffusion.nn"):
                importlib.import_module(module.name)
    found: list[type] = []
    waiting = list(interface.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.startswith("unfog.") and not inspect.isabstract(cls) and cls not in found:
            found.append(cls)
    return tuple(sorted(found, key=lambda cls: (cls.__module__, cls.__qualname__)))


def of_class(cls: type) -> list[Any]:
    """Return the representatives of a class; none if it needs arguments and has no entry."""
    if cls in representatives():
        return representatives()[cls]
    needs = [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    return [] if needs else [cls()]


class Told(Sampler):
    """A sampler that needs a learned variance, with denoisers that have learned none."""

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner

    def steps(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
    ) -> Iterator[Step]:
        return self.inner.steps(Telling(denoiser), x, times, cond, rng=rng)

    def evaluations(self, steps: int) -> int:
        return self.inner.evaluations(steps)


class Telling(Denoiser):
    """Answers a variance between its bounds beside another denoiser's x0."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.process, self.inner = inner.process, inner

    def begin(self) -> Denoiser:
        return Telling(self.inner.begin())

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        x0 = self.inner(x_t, t, cond).x0
        return Prediction(x0, torch.full_like(x0, 0.3))


def injects_noise(sampler: TableSampler) -> bool:
    rows = sampler.table(VariancePreserving(), torch.tensor([1.0, 0.6, 0.3, 0.1, 0.05], dtype=torch.float64))
    return any(move.noise > 0 for row in rows for move in row.all_moves)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "component" in metafunc.fixturenames:
        classes = [cls for interface in INTERFACES.values() for cls in concrete(interface)]
        metafunc.parametrize("component", classes, ids=lambda cls: cls.__name__)
    for name, interface in INTERFACES.items():
        found = {f"{cls.__name__}{i}": v for cls in concrete(interface) for i, v in enumerate(of_class(cls))}
        if interface is Sampler:
            # It goes on one schedule and one grid of its own: its laws are in tests/sampling/test_fitted.py.
            found = {key: value for key, value in found.items() if not isinstance(value, Fitted)}
            found = {key: Told(value) if isinstance(value, LearnedDDPM) else value for key, value in found.items()}
        choices = {name: found}
        if interface is Sampler:
            choices["table_sampler"] = {key: value for key, value in found.items() if isinstance(value, TableSampler)}
            choices["ode_sampler"] = {key: v for key, v in choices["table_sampler"].items() if not injects_noise(v)}
        for argument, values in choices.items():
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, list(values.values()), ids=list(values))


@pytest.fixture(scope="session")
def all_of() -> Callable[[type], list[Any]]:
    """The representatives of every concrete class of an interface, for tests that loop over them."""
    return lambda interface: [value for cls in concrete(interface) for value in of_class(cls)]


@pytest.fixture(scope="session")
def representatives_of() -> Callable[[type], list[Any]]:
    """The representatives of one class."""
    return of_class


@pytest.fixture(scope="session")
def nodes_of() -> Callable[[Schedule, TimeGrid, int], Grid | None]:
    """The nodes of a grid on a schedule, or None where the grid refuses it; kept, for many tests ask for the same."""
    kept: dict[tuple[int, int, int], Grid | None] = {}

    def look_up(schedule: Schedule, grid: TimeGrid, steps: int) -> Grid | None:
        # Representatives live as long as the session, so their identities name them.
        key = id(schedule), id(grid), steps
        if key not in kept:
            try:
                kept[key] = Grid.of(schedule, grid.times(schedule, steps))
            except ValueError:
                kept[key] = None
        return kept[key]

    return look_up
