"""float32 and bfloat16: what share of the machine's matrix products networks of width 128 and more reach.

Under bfloat16 each library's network runs under autocast, as its own trainer has it, and is held against the machine's
matrix product in bfloat16. Whether bfloat16 is worth it at all is told by the plain times of both.
"""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bench.contenders import DDPM_BATCH, SEED, Foreign, ddpm_network, entrants, images, trainer_of
from benchmarks.bench.measure import Comparison, Plan, Section, Share, Unit
from benchmarks.bench.training import STEPS, Work, flops_of, product, time_works
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import linear
from unfog.training.config import Precision

GOAL_FORWARD, GOAL_TRAINING = 0.65, 0.48
DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}


def forward_works(networks: dict[str, nn.Module], size: int) -> dict[str, Work]:
    """Return forward passes in both precisions, and the machine's products."""
    x, level = torch.randn(DDPM_BATCH, 3, size, size), torch.rand(DDPM_BATCH) * 999
    works = {precision.value: product(dtype) for precision, dtype in DTYPES.items()}
    for name, network in networks.items():
        gflop = DDPM_BATCH * flops_of(network, 3, size)
        for precision in DTYPES:
            run = partial(_forward, network.eval(), x, level, precision)
            works[f"{name}, {precision.value}"] = Work(run, DDPM_BATCH, gflop)
    return works


def _autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.BFLOAT16)


@torch.inference_mode()
def _forward(network: nn.Module, x: Tensor, level: Tensor, precision: Precision) -> Tensor:
    with _autocast(precision):
        answer: Tensor = network(x, level)
    return answer


def training_works(size: int) -> dict[str, Work]:
    """Return training steps in bfloat16, and the machine's product."""
    pictures, entrant = images(2 * DDPM_BATCH, 3, size), entrants(3, size)[0]
    denoiser = NetworkDenoiser(ddpm_network(), Gaussian(linear()), Eps())
    trainer = trainer_of(denoiser, pictures, DDPM_BATCH, Precision.BFLOAT16)
    theirs = entrant.peer.ddpm_network()
    gflop = 3 * DDPM_BATCH * flops_of(denoiser.network, 3, size)
    # What accelerate does for the script: the network's forward under autocast, the loss outside.
    theirs.forward = _autocast(Precision.BFLOAT16)(theirs.forward)
    return {
        Precision.BFLOAT16.value: product(torch.bfloat16),
        "ours": Work(trainer.advance, DDPM_BATCH, gflop),
        "diffusers": Work(entrant.peer.trainer(theirs, pictures, SEED, STEPS).step, DDPM_BATCH, gflop),
    }


def measure(plan: Plan) -> Section:
    """Measure forward passes in both precisions, and training in bfloat16."""
    size = plan.of(32, 16)
    entrant = entrants(3, size)[0]
    networks = {"ours": ddpm_network(), "diffusers": Foreign(entrant.peer, entrant.peer.ddpm_network())}
    samples, rates = time_works(forward_works(networks, size), plan.repeats)
    shares = [
        Share(
            f"{name}, forward, {precision.value}",
            rates[f"{name}, {precision.value}"],
            rates[precision.value],
            GOAL_FORWARD if name == "ours" and precision is Precision.BFLOAT16 else None,
        )
        for name in networks
        for precision in DTYPES
    ]
    half, single = Precision.BFLOAT16.value, Precision.FLOAT32.value
    comparisons = [
        Comparison(
            f"forward of {name}'s module of DDPM's network",
            half,
            single,
            Unit.SECONDS_A_SAMPLE,
            samples[f"{name}, {half}"],
            samples[f"{name}, {single}"],
        )
        for name in networks
    ]
    trained, rates = time_works(training_works(size), min(plan.repeats, 5))
    machine = rates[half]
    shares += [
        Share("ours, training, bfloat16", rates["ours"], machine, GOAL_TRAINING),
        Share("diffusers, training, bfloat16", rates["diffusers"], machine),
    ]
    comparisons.append(
        Comparison(
            "training of DDPM's network in bfloat16",
            "our trainer on our module",
            "diffusers",
            Unit.SECONDS_A_SAMPLE,
            trained["ours"],
            trained["diffusers"],
        )
    )
    return Section(
        tuple(comparisons),
        tuple(shares),
        notes=(f"DDPM's network, {size}x{size}, batches of {DDPM_BATCH}; bfloat16 is autocast, weights stay float32.",),
    )
