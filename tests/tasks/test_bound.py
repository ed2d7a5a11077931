"""The task of the bound: closed forms on Gaussian data, what is learned of the schedule, and resuming."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.data.dataset import to_float, to_uint8
from unfog.diffusion import analytic
from unfog.diffusion.learned import Learned, ScheduledNetwork
from unfog.diffusion.parameterization import X0, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.times import Stratified, Uniform
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.tasks.bound import Bound
from unfog.training.config import TrainConfig
from unfog.training.optim import OptimizerConfig
from unfog.training.trainer import Trainer

MEAN, VARIANCE, SIZE = 0.1, 0.04, 8


class GaussianBatches:
    """Rows of 8-bit levels of N(MEAN, VARIANCE), each met once in every 4,000."""

    def __init__(self) -> None:
        drawn = MEAN + VARIANCE**0.5 * torch.randn(4000, SIZE, generator=torch.Generator().manual_seed(0))
        self.x0 = to_float(to_uint8(drawn))

    def take(self, start: int, count: int) -> Batch:
        positions = torch.arange(start, start + count)
        ids = positions % len(self.x0)
        return Batch({"x0": self.x0[ids]}, ids, positions // len(self.x0), positions)


DATA = GaussianBatches()


class Exact(nn.Module):
    """Knows the data: answers with E[x0 | x_t] at the level that it is told."""

    def __init__(self, told: tuple[float, float]) -> None:
        super().__init__()
        self.told = told
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        clean, noisy = self.told
        log_snr = clean - c_noise / 1000 * (clean - noisy)
        signal = torch.sigmoid(log_snr)[:, None]
        gain = signal.sqrt() * VARIANCE / (signal * VARIANCE + 1 - signal)
        return MEAN + gain * (x - signal.sqrt() * MEAN)


class Small(nn.Module):
    """Learns a gain and an offset of each noise level, as smooth functions of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        gain, offset = self.layers(c_noise[:, None] / 500 - 1).chunk(2, 1)
        answer: Tensor = gain * x + offset
        return answer


def exact_task(begin: Learned | None = None) -> Bound:
    begin = begin or Learned(9.0, -5.0, parts=8)
    return Bound(ScheduledNetwork(Exact((begin.log_snr_max, begin.log_snr_min)), begin), X0(), Unconditional(), TIMES)


TIMES = Stratified(Uniform())


def keys(batch: Batch) -> Rng:
    return Rng.of(0, batch.ids, step=batch.epochs, position=batch.positions)


def test_terms_on_gaussian_data_equal_their_closed_forms() -> None:
    batch = DATA.take(0, 4000)
    with torch.no_grad():
        parts = exact_task().loss(batch, "model", rng=keys(batch)).parts
    bits = 1 / math.log(2)
    diffusion = 0.5 * math.log((1 + VARIANCE * math.exp(9.0)) / (1 + VARIANCE * math.exp(-5.0)))
    # 32,000 squares of normal numbers of about one size are known to sqrt(2 / 32,000), of which four are 3 %.
    assert float(parts["diffusion"]) == pytest.approx(bits * diffusion, rel=0.03)
    moment = float(batch.values["x0"].double().square().mean())
    assert float(parts["prior"]) == pytest.approx(bits * 0.5 * math.exp(-5.0) * moment, rel=1e-6)
    assert (float(parts["log_snr_max"]), float(parts["log_snr_min"])) == (9.0, -5.0)


def test_the_loss_is_the_sum_of_its_parts_and_the_mean_of_what_is_told_of_examples() -> None:
    batch, task = DATA.take(0, 16), exact_task()
    loss = task.loss(batch, "model", rng=keys(batch))
    parts = sum(float(loss.parts[name]) for name in ("diffusion", "prior", "reconstruction"))
    assert float(loss.total.detach()) == pytest.approx(parts, rel=1e-12)
    told = task.describe(batch, "model", rng=keys(batch))
    assert float(told["loss"].detach().mean()) == pytest.approx(parts, rel=1e-12)
    torch.testing.assert_close(told["log_snr"], task.schedule.log_snr(told["t"]))


def test_the_ends_follow_the_gradient_of_the_bound() -> None:
    # Of the exact model of Gaussian data: the bound falls with a cleaner end by what the data are known better, and a
    # noisier end always lowers it, by the prior.
    batch, task = DATA.take(0, 4000), exact_task()
    task.loss(batch, "model", rng=keys(batch)).total.backward()
    found = task.schedule.learner.ends.grad
    assert found is not None

    def bound(ends: Tensor) -> Tensor:
        clean, noisy = ends
        diffusion = 0.5 * (torch.log1p(VARIANCE * clean.exp()) - torch.log1p(VARIANCE * noisy.exp()))
        prior = 0.5 * noisy.exp() * DATA.x0.double().square().mean()
        z = torch.linspace(-6, 6, 2001, dtype=torch.float64)
        half = torch.exp(0.5 * clean) / 255
        mass = torch.special.ndtr(half - z) - torch.special.ndtr(-half - z)
        density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        return (diffusion + prior - torch.trapezoid(mass.log() * density, z)) / math.log(2)

    ends = torch.tensor([9.0, -5.0], dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(bound(ends), ends)
    # Sampled: derivatives through single noises vary about as much as they are large, over 32,000 elements.
    torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=2e-3)


def small_task() -> Bound:
    torch.manual_seed(0)
    return Bound(ScheduledNetwork(Small(), Learned(9.0, -5.0, parts=8)), V(), Unconditional(), TIMES)


def config(steps: int, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "steps": steps,
        "batch_size": 32,
        "seed": 3,
        "ema": (0.1,),
        "optimizer": OptimizerConfig(lr=0.02),
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def variation(task: Bound) -> float:
    """The standard deviation of the estimate of the term of diffusion over times and noises, over its mean."""
    batch = DATA.take(0, 2000)
    with torch.no_grad():
        t = TIMES.draw(keys(batch), task.schedule)
        found = task.terms(batch.values["x0"], t, {}, rng=keys(batch)).diffusion
    return float(found.std() / found.mean())


def test_a_learned_schedule_lowers_the_variance_of_the_estimate() -> None:
    task = small_task()
    for _ in Trainer(task, DATA, config(100, optimizer=OptimizerConfig(lr=0.05))):
        pass
    after = variation(task)
    with torch.no_grad():
        task.schedule.learner.logits.zero_()
    # The same network and ends, with all levels drawn alike.
    assert after < 0.8 * variation(task)


def test_the_masses_do_not_depend_on_how_a_batch_is_cut() -> None:
    found = []
    for micro in (None, 5):
        task = small_task().double()
        trainer = Trainer(task, DATA64, config(3, micro_batch=micro))
        for _ in trainer:
            pass
        found.append(task.schedule.learner.state_dict())
    for name, tensor in found[0].items():
        # float64: sums in another order.
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-10, atol=1e-12)


def state_of(trainer: Trainer) -> Mapping[str, Mapping[str, Tensor]]:
    return {group: {name: t.clone() for name, t in tensors.items()} for group, tensors in trainer.tensors().items()}


def test_a_resumed_run_learns_the_same_schedule_to_the_bit() -> None:
    whole = Trainer(small_task(), DATA, config(8))
    for _ in whole:
        pass
    first = Trainer(small_task(), DATA, config(8))
    for _ in range(3):
        first.advance()
    second = Trainer(small_task(), DATA, config(8))
    second.load_state(first.state())
    for _ in second:
        pass
    one, two = state_of(whole), state_of(second)
    assert {"learner.ends", "learner.logits"} <= set(one["model"])
    assert not torch.equal(one["model"]["learner.logits"], torch.zeros(8))
    for group, tensors in one.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two[group][name]), f"{group}/{name}"


class DoubleBatches(GaussianBatches):
    """The same in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.x0 = self.x0.double()


DATA64 = DoubleBatches()


def test_the_exact_network_of_these_tests_is_the_exact_denoiser() -> None:
    task = exact_task()
    frozen = Gaussian(task.schedule.learner.frozen())
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1))
    exact = analytic.gaussian(frozen, torch.full((SIZE,), MEAN), VARIANCE)
    # float32 told levels of up to 1000 are good to 6e-5, and the gain moves by a share of that.
    torch.testing.assert_close(task.denoiser(x, t).x0.detach(), exact(x, t).x0, rtol=1e-3, atol=1e-4)
