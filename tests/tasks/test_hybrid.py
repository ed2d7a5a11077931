import math

import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import EDM, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import (
    CleanEnd,
    Schedule,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    linear,
    scaled_linear,
)
from unfog.diffusion.times import Levels, Stratified, Uniform
from unfog.diffusion.weighting import Constant
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.tasks.denoising import Denoising
from unfog.tasks.hybrid import FixedVariance, LearnedVariance

SCHEDULES = [VariancePreserving(), linear(50), scaled_linear(40, CleanEnd.FIRST_LEVEL), VarianceExploding(5.0)]
CONTINUOUS = LearnedVariance(steps=50, eight_bit=False)
TABLE = LearnedVariance(eight_bit=False)


def setting(schedule: Schedule) -> LearnedVariance:
    return TABLE if isinstance(schedule, Tabulated) else CONTINUOUS


def grid(schedule: Schedule) -> Tensor:
    """The times of the grid, from the first that noise was added at."""
    if not isinstance(schedule, Tabulated):
        return torch.arange(1, 51, dtype=torch.float64) / 50
    return schedule.time_of(torch.arange(schedule.levels, dtype=torch.float64))


def best(schedule: Schedule, variance: float) -> tuple[Tensor, Tensor]:
    """The fraction that is best for data N(0, variance) with the exact denoiser, and its term in nats, by step.

    From the exact reverse kernel q(x_s | x_t): its variance is that of the posterior given x0 plus what x0 adds to it.
    """
    t = grid(schedule)[1:]
    s = grid(schedule)[:-1]
    alpha, sigma = schedule.scales(t)
    left = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    posterior, forward = Gaussian(schedule).posterior(s, t), Gaussian(schedule).kernel(s, t).std ** 2
    low = posterior.std**2
    true = low + posterior.x0_scale**2 * left
    return (true / low).log() / (forward / low).log(), 0.5 * (true / low).log()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_bound_is_irreducible_at_the_true_variance(schedule: Schedule) -> None:
    steps, variance = len(grid(schedule)), 0.7
    fraction, nats = best(schedule, variance)
    t = grid(schedule)[1:]
    alpha, sigma = schedule.scales(t)
    left = (variance * sigma**2 / (alpha**2 * variance + sigma**2)).sqrt()
    # Errors of plus and minus the deviation have the mean square that the expectation asks for.
    x0_hat = torch.zeros(len(t), 2, dtype=torch.float64)
    x0 = torch.stack([left, -left], dim=1)

    def bits(v: Tensor) -> Tensor:
        return setting(schedule).bound(schedule, x0, x0_hat, v[:, None].expand(-1, 2), t)

    found = bits(fraction) * math.log(2.0) / steps
    torch.testing.assert_close(found, nats, rtol=1e-9, atol=0)
    for nudge in (-0.05, 0.05):
        assert (bits(fraction + nudge) > bits(fraction)).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_last_step_has_the_likelihood_of_the_data(schedule: Schedule) -> None:
    steps, first = len(grid(schedule)), grid(schedule)[:1]
    error, variance = torch.tensor([[0.3]], dtype=torch.float64), schedule.sigma(first).square()
    at_top = setting(schedule).bound(schedule, error, torch.zeros_like(error), torch.ones_like(error), first)
    expected = -torch.distributions.Normal(0.0, variance.sqrt()).log_prob(error[:, 0]) / math.log(2.0)
    torch.testing.assert_close(at_top, steps * expected, rtol=1e-10, atol=0)


def test_times_between_those_of_the_grid_have_steps_of_the_same_length() -> None:
    schedule, t = VariancePreserving(), torch.tensor([0.5001, 0.5], dtype=torch.float64)
    x0, x0_hat = torch.tensor([[0.2], [0.2]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    between, on = CONTINUOUS.bound(schedule, x0, x0_hat, torch.full_like(x0, 0.4), t)
    assert between.item() == pytest.approx(on.item(), rel=0.01)
    assert between != on


def test_pictures_of_eight_bits_end_in_the_mass_of_a_bin() -> None:
    schedule, t = VariancePreserving(), torch.tensor([1e-3, 1e-3], dtype=torch.float64)
    x0 = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    bits = LearnedVariance().bound(schedule, x0, x0, torch.ones_like(x0), t) / 1000
    # A Gaussian of deviation sigma about a level puts erf(h / (sigma sqrt(2))) on its bin; one about the last level,
    # half of the rest too.
    mass = torch.erf(1 / 255 / (schedule.sigma(t) * math.sqrt(2.0)))
    expected = -torch.log2(torch.stack([mass[0], 0.5 + 0.5 * mass[1]]))
    torch.testing.assert_close(bits, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("t", [0.001, 0.02, 0.3, 1.0])
def test_only_the_variance_learns_from_the_bound(t: float) -> None:
    x0 = torch.full((2, 3), 0.4)
    x0_hat, fraction = (torch.full((2, 3), 0.1).requires_grad_() for _ in range(2))
    LearnedVariance().bound(VariancePreserving(), x0, x0_hat, fraction, torch.full((2,), t).double()).sum().backward()
    assert x0_hat.grad is None
    assert fraction.grad is not None
    assert fraction.grad.isfinite().all()
    assert (fraction.grad != 0).all()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LearnedVariance(weight=0.0), "weight above 0"),
        (lambda: LearnedVariance(steps=1), "steps of at least 2"),
        (lambda: LearnedVariance(steps=500).check(linear()), "variance.steps=None on a table of levels"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"expected {expected}"):
        make()


# --- with a network


class Toy(nn.Module):
    """Answers with the exact prediction for N(0, 0.25), and learns a fraction for each of some noise levels."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.fraction = nn.Parameter(torch.zeros(50))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), self.fraction[c_noise.round().long()][:, None].expand_as(x)], dim=1)


def toy() -> Denoising:
    # For N(0, sigma_data^2) the exact answer of EDM's prediction is 0: it has nothing to learn but the variance.
    schedule = linear(50)
    denoiser = NetworkDenoiser(Toy(schedule), Gaussian(schedule), LevelledEDM(0.5), learned_variance=True)
    times = Stratified(Levels())
    return Denoising(denoiser, Unconditional(), times, Constant(), variance=LearnedVariance(eight_bit=False))


class LevelledEDM(EDM):
    """Tells the network the index of its level."""

    def c_noise(self, t: Tensor, log_snr: Tensor) -> Tensor:
        return t


def batch(seed: int, count: int = 256) -> tuple[Batch, Rng]:
    rng = Rng.of(seed, count)
    x0 = 0.5 * rng.normal((16,), Purpose.SCRATCH)
    return Batch({"x0": x0}, rng.sample, rng.step.expand(count), rng.position), rng


def excess(schedule: Schedule, fraction: Tensor) -> float:
    """How far the divergences of the steps are above the least for N(0, 0.25), in nats, the last step left out."""
    t = grid(schedule)[1:]
    alpha, sigma = schedule.scales(t)
    left = (0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)).sqrt()[:, None]
    terms = TABLE.bound(schedule, left, torch.zeros_like(left), fraction[:, None].double(), t) * math.log(2.0)
    return (terms.mean() - best(schedule, 0.25)[1].sum() * len(grid(schedule)) / len(t)).item()


def test_a_network_learns_the_true_variance() -> None:
    task, t = toy(), grid(linear(50))[1:]
    optimizer = torch.optim.Adam(task.parameters(), lr=0.1)
    for step in range(60):
        data, rng = batch(step)
        optimizer.zero_grad()
        task.loss(data, "model", rng=rng).total.backward()
        optimizer.step()
    found = task.denoiser(torch.zeros(49, 16), t).variance_fraction
    assert found is not None
    # Each level meets some 5 x 16 squares of normal numbers a step, which Adam averages over ten steps or so.
    assert excess(linear(50), found[:, 0].detach()) < 0.05 * excess(linear(50), torch.full((49,), 0.5))


def test_the_bound_of_the_true_variance_is_the_irreducible_one() -> None:
    task, schedule = toy(), linear(50)
    fraction, nats = best(schedule, 0.25)
    network = task.denoiser.network
    assert isinstance(network, Toy)
    with torch.no_grad():
        network.fraction[1:] = 2.0 * fraction - 1.0
        network.fraction[0] = 1.0  # the upper bound of the last step, sigma^2
    first = schedule.sigma(grid(schedule)[0]).square()
    alpha = schedule.alpha(grid(schedule)[0])
    left = 0.25 * first / (alpha**2 * 0.25 + first)
    last = 0.5 * (left / first + (2.0 * math.pi * first).log())
    expected = (nats.sum() + last) / math.log(2.0)
    data, rng = batch(3, 20_000)
    told = task.loss(data, "model", rng=rng).parts
    # Each level meets 400 examples of 16 elements, whose squares have a mean that spreads by 2 per cent.
    assert told["bound"].item() == pytest.approx(expected.item(), abs=0.05 * last.abs().item())
    assert told["weighted_error"].item() == pytest.approx(1.0, abs=0.01)


def test_the_parts_tell_the_errors_and_the_bound_apart() -> None:
    task = toy()
    data, rng = batch(0)
    loss = task.loss(data, "model", rng=rng)
    error, bound = loss.parts["weighted_error"], loss.parts["bound"]
    assert loss.total.item() == pytest.approx(error.item() + 0.001 * bound.item(), rel=1e-6)


def test_a_variance_that_only_one_side_learns_is_refused() -> None:
    denoiser = NetworkDenoiser(nn.Identity(), Gaussian(VariancePreserving()), V())
    with pytest.raises(ValueError, match="expected learned_variance=True of the denoiser with LearnedVariance"):
        Denoising(denoiser, Unconditional(), Uniform(), Constant(), variance=LearnedVariance())
    denoiser.learned_variance = True
    with pytest.raises(ValueError, match="expected learned_variance=False of the denoiser with FixedVariance"):
        Denoising(denoiser, Unconditional(), Uniform(), Constant(), variance=FixedVariance())
