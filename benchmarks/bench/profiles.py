"""Where the time of our forward pass and of our training step goes, operator by operator."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench.contenders import DDPM_BATCH, ddpm_network, images, trainer_of
from benchmarks.bench.measure import Operator, Plan, Profile, Section
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import linear

ROWS = 12


def profiled(what: str, work: Callable[[], object]) -> Profile:
    """Profile one call, after one that is not looked at."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    events = sorted(seen.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    operators = tuple(Operator(e.key, e.count, e.self_cpu_time_total / 1e3) for e in events[:ROWS])
    return Profile(what, sum(e.self_cpu_time_total for e in events) / 1e3, operators)


def measure(plan: Plan) -> Section:
    """Profile our forward pass and our training step on DDPM's network."""
    size = plan.of(32, 16)
    denoiser = NetworkDenoiser(ddpm_network(), Gaussian(linear()), Eps())
    x, t = torch.randn(DDPM_BATCH, 3, size, size), torch.rand(DDPM_BATCH, dtype=torch.float64)

    @torch.inference_mode()
    def forward() -> object:
        return denoiser(x, t)

    trainer = trainer_of(denoiser, images(2 * DDPM_BATCH, 3, size), DDPM_BATCH)
    what = f"DDPM's network, {DDPM_BATCH} pictures of {size}x{size}, float32"
    return Section(
        profiles=(profiled(f"forward, {what}", forward), profiled(f"training step, {what}", trainer.advance)),
    )
