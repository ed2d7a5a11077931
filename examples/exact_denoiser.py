"""Check a sampler against the truth: no network, a mixture of Gaussians whose denoiser is known exactly."""

import torch

from unfog.diffusion.analytic import mixture
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import RectifiedFlow
from unfog.sampling.gaussian import DDIM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.sampler import Sampler, sample

process = Gaussian(RectifiedFlow())
means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
denoiser = mixture(process, means, variances=0.01)
rng = Rng.of(seed=0, sample=4)
noise = process.prior((2,), rng=rng, dtype=torch.float64)


def final(sampler: Sampler, steps: int) -> torch.Tensor:
    """Return where the same noise ends."""
    return sample(denoiser, sampler, Trailing().times(process.schedule, steps), noise, rng=rng)


truth = final(Heun(), 2000)
for sampler in (DDIM(), Heun(), DPMSolverPP2M()):
    errors = [(final(sampler, steps) - truth).abs().max().item() for steps in (5, 10, 20, 40, 80)]
    print(f"{type(sampler).__name__:14}", "  ".join(f"{error:.1e}" for error in errors))
