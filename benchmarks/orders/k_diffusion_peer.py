"""k-diffusion's samplers over levels of noise that are given to them, in float64.

Its samplers are functions of sigmas. The package asks at its top for a dozen libraries (of images, of weights, of
stochastic integration) that none of them uses: its module of samplers is imported without that top, and what is not
installed is stood in for by names that refuse to be used.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.orders.peer import Denoise, Peer
from benchmarks.peers import stand_in

_ABSENT = {
    "torchdiffeq": ("odeint",),
    "torchsde": (),
}
"""What the module of samplers imports and does not use here, with the names it takes from there."""


def available() -> bool:
    """Tell whether k-diffusion is installed."""
    return importlib.util.find_spec("k_diffusion") is not None


@cache
def samplers() -> ModuleType:
    """Return its module of samplers."""
    found = importlib.util.find_spec("k_diffusion")
    assert found is not None
    assert found.submodule_search_locations is not None
    absent = [name for name in _ABSENT if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in absent:
        module = ModuleType(name, "A stand-in; see benchmarks/orders/k_diffusion_peer.py.")
        module.__dict__.update({each: _refusing(f"{name}.{each}") for each in _ABSENT[name]})
        sys.modules[name] = module
    package = ModuleType("k_diffusion")
    package.__spec__ = found  # for whoever asks whether it is there
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    try:
        with stand_in.present():
            return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in absent:
            del sys.modules[name]  # whoever asks later whether it is installed shall hear that it is not


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ImportError(f"{name} is not installed; no sampler that is measured needs it")

    return refuse


@dataclass(frozen=True)
class KDiffusion(Peer):
    """One of its samplers.

    Attributes:
        name: of the function.
        claimed: its order.
        a_step: evaluations.
        settings: arguments, those that inject no noise.
    """

    name: str
    claimed: int
    a_step: int = 1
    settings: tuple[tuple[str, Any], ...] = ()

    def evaluations(self, steps: int) -> int | None:
        return self.a_step * steps

    def solve(self, denoise: Denoise, y: Tensor, levels: Callable[[int], Tensor], steps: int) -> Tensor:
        def model(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x, sigma[0])

        run = getattr(samplers(), self.name)
        end: Tensor = run(model, y, levels(steps), disable=True, **dict(self.settings))
        return end


@dataclass(frozen=True)
class Fast(Peer):
    """``sample_dpm_fast``, which has times of its own: uniform in log-SNR, as many as fill its evaluations."""

    name: str = "sample_dpm_fast (its own times)"
    claimed: int = 3

    def evaluations(self, steps: int) -> int | None:
        # It ends with steps of order 2 and 1 where three divides its evaluations.
        return steps - 1 if steps % 3 == 0 else steps

    def solve(self, denoise: Denoise, y: Tensor, levels: Callable[[int], Tensor], steps: int) -> Tensor:
        def model(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x, sigma[0])

        first, last = (level.log().neg() for level in levels(1))
        solver = samplers().DPMSolver(model)
        # Its points are made in the default precision.
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            end: Tensor = solver.dpm_solver_fast(y, first, last, self.evaluations(steps))
        finally:
            torch.set_default_dtype(before)
        return end


def _silent(*_: Any) -> float:
    return 0.0


_ODE = (("eta", 0.0), ("noise_sampler", _silent))

PEERS: dict[str, Peer] = {
    "euler": KDiffusion("sample_euler", 1),
    "heun": KDiffusion("sample_heun", 2, 2),
    "dpm 2s karras": KDiffusion("sample_dpm_2", 2, 2),
    "dpm++ 2s": KDiffusion("sample_dpmpp_2s_ancestral", 2, 2, _ODE),
    "dpm++ 2m": KDiffusion("sample_dpmpp_2m", 2),
    "dpm++ 3m": KDiffusion("sample_dpmpp_3m_sde", 3, 1, _ODE),
    "dpm 3s": Fast(),
    "lms 4": KDiffusion("sample_lms", 4),
}
