"""Host time: what samplers cost around the network, what noise costs, what a training step costs around the network.

The network does nothing, so all that is left is the library. Each loop is the one that its own pipeline runs, setting
the time steps included, without progress bars.
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from benchmarks.bench.contenders import images, trainer_of
from benchmarks.bench.measure import Comparison, Plan, Section, Unit, alternate, per
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import linear, linear_betas
from unfog.sampling.gaussian import DDIM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.sampler import Sampler, sample

STEPS = 20
SHAPE = (1, 1, 8, 8)
GOAL = 2.0
"""Ours costs at most half of the other: the goal is set for DPM-Solver++ alone."""

BATCH = 16
NOISE = {
    "128 digits": torch.Size((128, 1, 8, 8)),
    "128 MNIST images": torch.Size((128, 1, 28, 28)),
    "64 CIFAR images": torch.Size((64, 3, 32, 32)),
}
METHODS: dict[str, tuple[Sampler, type[SchedulerMixin]]] = {
    "DDIM": (DDIM(), DDIMScheduler),
    "DPM-Solver++ 2M": (DPMSolverPP2M(), DPMSolverMultistepScheduler),
    "Heun": (Heun(), HeunDiscreteScheduler),
}


class Nothing(nn.Module):
    """A network that returns its input; it has a parameter, as networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def our_loop(method: Sampler, steps: int) -> Callable[[], object]:
    """Return one trajectory of ours on DDPM's schedule."""
    process = Gaussian(linear())
    denoiser, grid, rng, x = (
        NetworkDenoiser(Nothing(), process, Eps()),
        Trailing(),
        Rng.of(0, SHAPE[0]),
        torch.randn(SHAPE),
    )

    @torch.inference_mode()
    def run() -> Tensor:
        drawn: Tensor = sample(denoiser, method, grid.times(process.schedule, steps), x, rng=rng)
        return drawn

    return run


def their_loop(scheduler: SchedulerMixin, steps: int) -> Callable[[], object]:
    """Return one trajectory of diffusers on DDPM's schedule."""
    network, x = Nothing(), torch.randn(SHAPE)

    @torch.no_grad()
    def run() -> Tensor:
        scheduler.set_timesteps(steps)
        state: Tensor = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            answer = network(scheduler.scale_model_input(state, t), t)
            state = scheduler.step(answer, t, state).prev_sample
        return state

    return run


def sampling(plan: Plan) -> list[Comparison]:
    """Compare the loops of three deterministic methods."""
    works: dict[str, Callable[[], object]] = {}
    for name, (ours, theirs) in METHODS.items():
        works[f"ours {name}"] = our_loop(ours, STEPS)
        works[f"theirs {name}"] = their_loop(
            theirs(1000, beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing"), STEPS
        )
    seconds = alternate(works, plan.of(50, 3))
    found = {name: per(values, STEPS / 1e6) for name, values in seconds.items()}
    return [
        Comparison(
            f"{name}, {STEPS} steps",
            f"Unfog {type(ours).__name__}",
            f"diffusers {theirs.__name__}",
            Unit.MICROSECONDS_A_STEP,
            found[f"ours {name}"],
            found[f"theirs {name}"],
            goal=GOAL if name == "DPM-Solver++ 2M" else None,
        )
        for name, (ours, theirs) in METHODS.items()
    ]


def noise(plan: Plan) -> list[Comparison]:
    """Compare counter-based noise, the same whatever the batch, with torch's generator."""
    comparisons = []
    for name, size in NOISE.items():
        rng = Rng.of(0, size[0])
        seconds = alternate(
            {
                "ours": partial(rng.normal, size[1:], Purpose.NOISE),
                "torch": partial(torch.randn, size),
            },
            plan.of(30, 3),
        )
        ours, theirs = (per(values, size.numel() / 1e9) for values in seconds.values())
        comparisons.append(
            Comparison(f"noise of {name}", "Unfog Rng", "torch.randn", Unit.NANOSECONDS_A_NUMBER, ours, theirs)
        )
    return comparisons


class Scale(Nothing):
    """A network of one multiplication, so that there is something to train."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * self.weight


class Bare:
    """DDPM's training written out, with the same optimiser and average and nothing around it."""

    def __init__(self, pictures: Tensor) -> None:
        self.network, self.pictures = Scale(), pictures
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        bars = torch.cumprod(1.0 - linear_betas(), 0)
        self.alpha, self.sigma = bars.sqrt().float(), (1.0 - bars).sqrt().float()

    def step(self) -> None:
        """Train on all images once."""
        x0 = self.pictures.float().div_(127.5).sub_(1.0)
        t, noise = torch.randint(0, 1000, (len(x0),)), torch.randn_like(x0)
        x_t = self.alpha[t][:, None, None, None] * x0 + self.sigma[t][:, None, None, None] * noise
        self.optimizer.zero_grad(set_to_none=True)
        loss = (self.network(x_t, t) - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], 1e-4)
        loss.item()


def training(plan: Plan) -> Comparison:
    """Compare our trainer with a bare loop, both around a network of one weight."""
    pictures = images(BATCH, 3, 32)
    denoiser = NetworkDenoiser(Scale(), Gaussian(linear()), Eps())
    bare, trainer = Bare(pictures), trainer_of(denoiser, pictures, BATCH)
    seconds = alternate({"ours": trainer.advance, "bare": bare.step}, plan.of(30, 3))
    return Comparison(
        f"a training step around the network, {BATCH} pictures of 32x32",
        "Unfog Trainer",
        "a bare PyTorch loop",
        Unit.SECONDS,
        seconds["ours"],
        seconds["bare"],
    )


def measure(plan: Plan) -> Section:
    """Measure the host time of sampling, noise and training."""
    return Section(
        comparisons=(*sampling(plan), *noise(plan), training(plan)),
        notes=(
            "The network returns its input, the state is one picture of 8x8: what is timed is the library alone, "
            "setting the time steps included.",
            "Our noise is a function of seed, sample, step and purpose; torch's depends on what was drawn before.",
        ),
    )
