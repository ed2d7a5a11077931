from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import VariancePreserving, linear
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.noise import noises
from unfog.sampling.sampler import Sampler, Step, require_finite, sample

SCHEDULE = VariancePreserving()
DATA = analytic.gaussian(Gaussian(SCHEDULE), torch.zeros(3, dtype=torch.float64), 0.5)


def test_the_last_state_is_the_sample() -> None:
    rng, times = Rng.of(0, 2), Trailing().times(SCHEDULE, 5)
    x = DATA.process.prior((3,), rng=rng, dtype=torch.float64)
    *_, last = DDPM().steps(DATA, x, times, rng=rng)
    assert torch.equal(sample(DATA, DDPM(), times, x, rng=rng), last.x)


@pytest.mark.parametrize("ahead", [1, 7, 12])
def test_noise_drawn_ahead_is_the_noise_of_each_step(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    rng, times = Rng.of(0, 2), Trailing().times(SCHEDULE, 9)
    x = DATA.process.prior((3,), rng=rng, dtype=torch.float64)
    expected = sample(DATA, DDPM(), times, x, rng=rng)
    # Six numbers a step: one, one, or two steps at a time.
    monkeypatch.setattr("unfog.sampling.noise._AT_ONCE", ahead)
    assert torch.equal(sample(DATA, DDPM(), times, x, rng=rng), expected)


def test_each_step_injects_its_noise_of_the_path() -> None:
    rng, times = Rng.of(0, 2), torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    x = DATA.process.prior((3,), rng=rng, dtype=torch.float64)
    quiet, noisy = DDIM(0.0), DDPM()
    rows = noisy.table(SCHEDULE, times)
    states = [step.x for step in noisy.steps(DATA, x, times, rng=rng)]
    drawn = list(noises(rows, x, rng))
    for k, (row, state) in enumerate(zip(rows, [x, *states], strict=False)):
        move = row.moves[0]
        mean = move.x * state + move.x0[0] * DATA(state, torch.tensor(row.t, dtype=torch.float64)).x0
        noise = (states[k] - mean) / move.noise
        # Undoing the sum costs a few roundings.
        torch.testing.assert_close(noise, drawn[k], rtol=0, atol=1e-13)
    assert not any(move.noise for row in quiet.table(SCHEDULE, times) for move in row.moves)


def test_the_denoiser_is_asked_at_the_exact_times_of_the_levels() -> None:
    asked: list[Tensor] = []

    class Asked(Denoiser):
        process = Gaussian(linear())

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None):  # type: ignore[no-untyped-def]
            asked.append(t)
            return DATA(x_t, t)

    rng, times = Rng.of(0, 1), Trailing().times(linear(), 1000)
    sample(Asked(), DDIM(), times, torch.zeros(1, 3), rng=rng)
    assert torch.equal(torch.stack(asked), times[:-1])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 4, 4, 3)])
def test_the_state_may_have_any_shape(shape: tuple[int, ...]) -> None:
    data = analytic.gaussian(Gaussian(SCHEDULE), torch.zeros(shape), 0.5)
    x, times = torch.zeros(2, *shape), Trailing().times(SCHEDULE, 3)
    assert sample(data, DDPM(), times, x, rng=Rng.of(0, 2)).shape == (2, *shape)


@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), Heun(), DPMSolverPP2M()], ids=repr)
def test_gradients_flow_through_every_evaluation(sampler: Sampler) -> None:
    class Tanh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.tanh(self.weight * x + c_noise[:, None] / 1000)

    network, rng, times = Tanh(), Rng.of(0, 2), Trailing().times(SCHEDULE, 4)
    denoiser = NetworkDenoiser(network, Gaussian(SCHEDULE), V())
    x = DATA.process.prior((3,), rng=rng, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample(denoiser, sampler, times, x, rng=rng), (x,))
    sample(denoiser, sampler, times, x, rng=rng).sum().backward()
    assert network.weight.grad is not None
    sums = []
    for change in (1e-6, -2e-6):
        with torch.no_grad():
            network.weight += change
            sums.append(sample(denoiser, sampler, times, x, rng=rng).sum().item())
    # Roundings of 1e-16 over steps of 1e-6, and their square: a central difference good to 1e-10.
    assert network.weight.grad.item() == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-6)


def test_a_sampler_that_makes_no_step_is_refused() -> None:
    class Idle(Sampler):
        def steps(
            self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, rng: Rng
        ) -> Iterator[Step]:
            return iter(())

        def evaluations(self, steps: int) -> int:
            return 0

    with pytest.raises(ValueError, match="the sampler made no step: the grid is empty"):
        sample(DATA, Idle(), torch.tensor([1.0, 0.0]), torch.zeros(1, 3), rng=Rng.of(0, 1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_samples_that_are_not_finite_are_named(value: float) -> None:
    x = torch.zeros(20, 2, 2)
    require_finite(x)
    x[3, 0, 1] = value
    x[17, 1, 1] = value
    with pytest.raises(FloatingPointError, match=r"samples \[3, 17\] of 20 are not finite.*guidance scale"):
        require_finite(x)


def test_tables_can_be_printed() -> None:
    row = DDIM().table(SCHEDULE, torch.tensor([1.0, 0.0]))[0]
    move = "Move(x=0.0, x0=(1.0,), noise=0.0, commits=True, span=None)"
    assert repr(row) == f"Row(t=1.0, moves=({move},), s=0.0, before=None)"
