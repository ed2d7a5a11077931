"""What the loop of every sampler promises to its caller."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from unfog.diffusion.parameterization import Eps, Parameterization, Score, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import (
    Cosine,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    cosine,
    linear,
)
from unfog.diffusion.shapes import align
from unfog.sampling.grid import Karras, Trailing
from unfog.sampling.restart import Restart
from unfog.sampling.sampler import Sampler, Step, TableSampler, sample

SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear(), cosine()]


def mixture(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.6]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.05)


def prior(schedule: Schedule, rng: Rng, dtype: torch.dtype = torch.float64) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=rng, dtype=dtype)


class Counting(Denoiser):
    """Counts its calls, and the trajectories begun."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.process, self.inner, self.calls, self.begun = inner.process, inner, 0, 0

    def begin(self) -> Denoiser:
        self.begun += 1
        return self

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.calls += 1
        prediction: Prediction = self.inner(x_t, t, cond)
        return prediction


class Exact(nn.Module):
    """A network that is right: it turns the answer of an analytic denoiser into its parameterization.

    What it is told of the noise level need not determine the time (it is clamped, or rounded): the time is set apart.
    """

    def __init__(self, analytic_denoiser: analytic.Analytic, parameterization: Parameterization) -> None:
        super().__init__()
        self.denoiser, self.parameterization = analytic_denoiser, parameterization
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.t = torch.zeros(())

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        assert c_noise.shape == x.shape[:1]
        assert c_noise.isfinite().all()
        schedule, t = self.denoiser.process.schedule, self.t
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x_t = x / align(self.parameterization.c_in(alpha, sigma), x)
        x0: Tensor = self.denoiser(x_t, t).x0
        eps = (x_t - align(alpha, x) * x0) / align(sigma, x)
        return self.parameterization.target(x0, eps, alpha, sigma)


class Told(Denoiser):
    """Sets the time of the exact network inside."""

    def __init__(self, inner: NetworkDenoiser, network: Exact) -> None:
        super().__init__()
        self.process, self.inner, self.network = inner.process, inner, network

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.network.t = t
        prediction: Prediction = self.inner(x_t, t, cond)
        return prediction


class SmallNetwork(nn.Module):
    """A few convolutions that see the noise level."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        level = (c_noise / 1000.0)[:, None, None, None].expand_as(x).to(x.dtype)
        out: Tensor = self.second(torch.tanh(self.first(torch.cat([x, level], dim=1))))
        return out


def refuses(sampler: Sampler, steps: int) -> bool:
    """A method whose order is a setting refuses fewer steps than that."""
    if not isinstance(sampler, TableSampler) or steps >= sampler.order:
        return False
    try:
        sampler.table(linear(), Trailing().times(linear(), steps))
    except ValueError as error:
        refusal = str(error)
    else:
        return False
    assert f"expected at least {sampler.order} steps" in refusal
    return True


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_point_mass_is_hit_without_residual_noise(sampler: Sampler, steps: int) -> None:
    if refuses(sampler, steps):
        return
    rng = Rng.of(3, 3)
    point = torch.tensor([0.7, -0.2], dtype=torch.float64)
    for schedule in SCHEDULES:
        denoiser = analytic.point_mass(Gaussian(schedule), point)
        result = sample(denoiser, sampler, Trailing().times(schedule, steps), prior(schedule, rng), rng=rng)
        # The last step returns x0 itself.
        torch.testing.assert_close(result, point.expand(3, 2), rtol=0, atol=1e-12)


def test_every_parameterization_has_the_same_trajectory(sampler: Sampler, parameterization: Parameterization) -> None:
    rng = Rng.of(5, 4)
    for schedule in SCHEDULES:
        if isinstance(parameterization, (Eps, Score)) and isinstance(schedule, (Cosine, RectifiedFlow)):
            continue  # refused: alpha_1 = 0
        plain = mixture(schedule)
        network = Exact(plain, parameterization)
        wrapped = Told(NetworkDenoiser(network, plain.process, parameterization), network)
        times, x = Karras(sigma_min=0.05).times(schedule, 7), prior(schedule, rng)
        with torch.no_grad():
            runs = [list(sampler.steps(each, x, times, rng=rng)) for each in (plain, wrapped)]
        for expected, found in zip(*runs, strict=True):
            # States are of size 80 at most. Where alpha_1 = 5e-5, x0 comes from eps by a division that costs 2e4 eps,
            # and Heun's first step to sigma / alpha = 80 multiplies differences of x0 by 100.
            torch.testing.assert_close(found.x0, expected.x0, rtol=0, atol=1e-9)
            torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_each_evaluation_is_one_step_and_their_number_is_known_before(sampler: Sampler, steps: int) -> None:
    if refuses(sampler, steps):
        return
    rng = Rng.of(1, 3)
    for schedule in SCHEDULES:
        denoiser, times = Counting(mixture(schedule)), Trailing().times(schedule, steps)
        seen: list[Step] = []
        for step in sampler.steps(denoiser, prior(schedule, rng), times, rng=rng):
            seen.append(step)
            assert sampler.adaptive or denoiser.calls == len(seen)
        if not sampler.adaptive:
            assert len(seen) == sampler.evaluations(steps)
        assert denoiser.calls <= sampler.evaluations(steps)
        assert [step.index for step in seen] == list(range(len(seen)))
        assert all(before.progress < after.progress for before, after in pairwise(seen))
        assert seen[0].progress > 0
        assert seen[-1].progress == 1
        assert denoiser.begun == 1
        assert seen[-1].t == times[-1]
        assert all(step.x.shape == step.x0.shape == (3, 2) for step in seen)
        assert all(step.x.isfinite().all() and step.x0.isfinite().all() for step in seen)


def test_the_times_of_the_steps_fall_to_the_end_of_the_grid(sampler: Sampler) -> None:
    rng, times = Rng.of(1, 1), Trailing().times(linear(), 9)
    reached = torch.stack([s.t for s in sampler.steps(mixture(linear()), prior(linear(), rng), times, rng=rng)])
    # A restart goes back to more noise.
    assert isinstance(sampler, Restart) or (reached.diff() <= 0).all()
    # Points between the nodes are those of methods of several evaluations a step; each node is reached by all.
    assert set(times[1:].tolist()) <= set(reached.tolist())
    assert reached[-1] == times[-1]


def test_what_was_yielded_stays_as_it_was(sampler: Sampler) -> None:
    rng, schedule = Rng.of(1, 2), VariancePreserving()
    start = prior(schedule, rng)
    before = start.clone()
    steps, copies = [], []
    for step in sampler.steps(mixture(schedule), start, Trailing().times(schedule, 6), rng=rng):
        steps.append(step)
        copies.append((step.x.clone(), step.x0.clone()))
    assert torch.equal(start, before)
    assert all(torch.equal(s.x, x) and torch.equal(s.x0, x0) for s, (x, x0) in zip(steps, copies, strict=True))


def test_a_sampler_serves_two_trajectories_at_once(sampler: Sampler) -> None:
    schedule = VariancePreserving()
    times = [Trailing().times(schedule, 5), Karras().times(schedule, 8)]
    keys = [Rng.of(11, 2), Rng.of(12, 3)]

    def trajectory(i: int) -> Any:
        return sampler.steps(mixture(schedule), prior(schedule, keys[i]), times[i], rng=keys[i])

    apart = [[step.x for step in trajectory(i)] for i in (0, 1)]
    both = [trajectory(0), trajectory(1)]
    together: list[list[Tensor]] = [[], []]
    for _ in range(max(map(len, apart))):
        for i in (1, 0):
            step = next(both[i], None)
            if step is not None:
                together[i].append(step.x)
    for expected, found in zip(apart, together, strict=True):
        assert len(expected) == len(found)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_dtype_of_the_state_is_kept(sampler: Sampler) -> None:
    schedule, rng = VariancePreserving(), Rng.of(1, 2)
    denoiser = NetworkDenoiser(SmallNetwork(), Gaussian(schedule), V())
    for dtype in (torch.float32, torch.float64):
        x = Gaussian(schedule).prior((1, 3, 3), rng=rng, dtype=dtype)
        with torch.no_grad():
            assert sample(denoiser, sampler, Trailing().times(schedule, 4), x, rng=rng).dtype is dtype


def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    schedule, whole = VariancePreserving(), Rng.of(9, 6)
    times = Trailing().times(schedule, 6)
    # An order-1e-4 network error in float32 comes from other vector lengths; float64 has nine digits more.
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        denoiser = NetworkDenoiser(SmallNetwork().to(dtype), Gaussian(schedule), V())

        def run(rng: Rng, denoiser: Denoiser = denoiser, dtype: torch.dtype = dtype) -> tuple[Tensor, Tensor]:
            noise = Gaussian(schedule).prior((1, 5, 5), rng=rng, dtype=dtype)
            with torch.no_grad():
                return noise, sample(denoiser, sampler, times, noise, rng=rng)

        noise, result = run(whole)
        for part, rng in ((slice(0, 1), whole[:1]), (slice(2, 6), whole[2:6]), (slice(4, 5), Rng.of(9, [4]))):
            other_noise, other = run(rng)
            assert torch.equal(other_noise, noise[part])
            torch.testing.assert_close(other, result[part], rtol=0, atol=tolerance)
        backwards_noise, backwards = run(Rng.of(9, torch.arange(5, -1, -1)))
        assert torch.equal(backwards_noise.flip(0), noise)
        torch.testing.assert_close(backwards.flip(0), result, rtol=0, atol=tolerance)


def test_a_nan_is_never_returned_silently(sampler: Sampler) -> None:
    class Broken(Denoiser):
        process = Gaussian(VariancePreserving())

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            x0 = torch.zeros_like(x_t)
            x0[1] = torch.nan
            return Prediction(x0)

    rng, schedule = Rng.of(0, 3), VariancePreserving()
    with pytest.raises(FloatingPointError, match=r"samples \[1\] of 3 are not finite"):
        sample(Broken(), sampler, Trailing().times(schedule, 4), prior(schedule, rng), rng=rng)


def test_a_wrong_number_of_keys_is_refused(sampler: Sampler) -> None:
    schedule = VariancePreserving()
    x = prior(schedule, Rng.of(0, 3))
    with pytest.raises(ValueError, match="one key per sample: 3, not 1"):
        sample(mixture(schedule), sampler, Trailing().times(schedule, 4), x, rng=Rng.of(0, 1))


@pytest.mark.parametrize("times", [[1.0], [0.5, 0.5, 0.0], [0.2, 0.7], [1.2, 0.0], [0.5, -0.1]])
def test_a_grid_that_does_not_fall_is_refused(sampler: Sampler, times: list[float]) -> None:
    schedule, rng = VariancePreserving(), Rng.of(0, 1)
    with pytest.raises(ValueError, match=r"expected (times that fall strictly|a grid of at least 2 times)"):
        sample(mixture(schedule), sampler, torch.tensor(times), prior(schedule, rng), rng=rng)


def test_conditions_reach_the_denoiser(sampler: Sampler) -> None:
    schedule, rng = VariancePreserving(), Rng.of(0, 3)
    denoiser = analytic.empirical(Gaussian(schedule), torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    label = torch.tensor([1, 0, 1])
    result = sample(denoiser, sampler, Trailing().times(schedule, 5), prior(schedule, rng), {"label": label}, rng=rng)
    # One component is a point mass, returned as it is.
    torch.testing.assert_close(result, denoiser.means[label], rtol=0, atol=1e-12)
