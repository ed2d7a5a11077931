"""Our samplers by the methods that other libraries have too, and those found besides."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.orders import diffusers_peer, k_diffusion_peer
from benchmarks.orders.peer import Peer
from unfog.recipe.errors import RecipeError
from unfog.recipe.kinds import names
from unfog.recipe.plain import decode
from unfog.sampling.adams import Start
from unfog.sampling.gaussian import DDIM, Heun
from unfog.sampling.multistep import (
    DEIS,
    PNDM,
    Bh,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Interpolation,
    UniPC,
    lms,
)
from unfog.sampling.sampler import Sampler, TableSampler
from unfog.sampling.singlestep import RK4, DPMSolver, DPMSolverPP

_ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Method:
    """A method, whoever has it.

    Attributes:
        name: of it.
        ours: our sampler; None where we have none.
        diffusers: theirs.
        k_diffusion: theirs.
    """

    name: str
    ours: TableSampler | None
    diffusers: Peer | None = None
    k_diffusion: Peer | None = None


OURS: dict[str, tuple[str, TableSampler]] = {
    "ddim": ("DDIM", DDIM()),
    "euler": ("Euler", DDIM()),
    "heun": ("Heun", Heun()),
    "dpm 2s karras": ("DPM2, midpoint of Karras' levels", DPMSolver(2)),
    **{f"dpm {k}s": (f"DPM-Solver-{k}, single step", DPMSolver(k)) for k in (1, 2, 3)},
    **{f"dpm {k}m": (f"DPM-Solver-{k}, multistep", DPMSolverMultistep(k)) for k in (1, 2, 3)},
    "dpm++ 1s": ("DPM-Solver++(1S)", DPMSolverPP(1)),
    "dpm++ 2s": ("DPM-Solver++(2S)", DPMSolverPP(2)),
    "dpm++ 3s": ("DPM-Solver++(3S)", DPMSolverPP(3)),
    "dpm++ 2m": ("DPM-Solver++(2M)", DPMSolverPP2M()),
    "dpm++ 3m": ("DPM-Solver++(3M)", DPMSolverPP3M()),
    **{
        f"unipc {k} {kind}": (f"UniPC-{k}, {kind}", UniPC(k, bh))
        for k in (1, 2, 3)
        for kind, bh in (("bh1", Bh.B1), ("bh2", Bh.B2))
    },
    "unipc 2 of eps": ("UniPC-2, bh2, of eps", UniPC(2, of_noise=True)),
    # diffusers' DEIS interpolates in log-SNR.
    **{f"deis {k}": (f"DEIS-{k} in log-SNR", DEIS(k, Interpolation.LOG_SNR)) for k in (1, 2, 3)},
    "pndm": ("PNDM", PNDM()),
    "plms": ("PLMS", PNDM(runge_kutta=False)),
    "lms 4": ("LMS-4", lms()),
    "rk4": ("Runge-Kutta 4", RK4()),
    "dpm 2m published": ("DPM-Solver-2, multistep, as published", DPMSolverMultistep(2, published=True)),
    "dpm 3m published": ("DPM-Solver-3, multistep, as published", DPMSolverMultistep(3, published=True)),
    "dpm++ 3m published": ("DPM-Solver++(3M), as published", DPMSolverPP3M(published=True)),
    "lms 4 published": ("LMS-4 with a rising start, as published", lms(4, Start.RISING)),
    "unip 2": ("UniP-2, without the corrector", UniPC(2, corrector=False)),
    "unip 3": ("UniP-3, without the corrector", UniPC(3, corrector=False)),
}
"""Our methods by the key that others have them under."""


def methods() -> list[Method]:
    """Return every method: those that are paired, theirs that are left, and ours that no one else has."""
    others = {**diffusers_peer.PEERS}
    theirs = dict(k_diffusion_peer.PEERS) if k_diffusion_peer.available() else {}
    found = []
    for key in dict.fromkeys([*OURS, *others, *theirs]):
        name, ours = OURS.get(key, (None, None))
        there = others.get(key), theirs.get(key)
        found.append(Method(name or next(peer.name for peer in there if peer is not None), ours, *there))
    known = [method.ours for method in found]
    found += [Method(name, sampler) for name, sampler in discovered() if sampler not in known]
    return found


def discovered() -> Iterator[tuple[str, TableSampler]]:
    """Yield every table that recipes can name, by its name, and at every order that it can be set to."""
    seen: list[Sampler] = []
    for name in names(Sampler):
        try:
            sampler = decode(Sampler, name)
        except RecipeError:
            continue  # it has settings without defaults: no method but a fitted one
        if not isinstance(sampler, TableSampler):
            continue
        for value, suffix in ((sampler, ""), *_at_orders(sampler)):
            if value not in seen:
                seen.append(value)
                yield f"{name}{suffix}", value


def _at_orders(sampler: TableSampler) -> Iterator[tuple[TableSampler, str]]:
    settings: Any = sampler  # a dataclass, as every sampler is
    if not any(field.name == "order" for field in dataclasses.fields(settings)):
        return
    for order in _ORDERS:
        try:
            yield dataclasses.replace(settings, order=order), f", order {order}"
        except ValueError:
            continue
