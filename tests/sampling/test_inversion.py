import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from unfog.diffusion.parameterization import V
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
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Karras, LogSNRUniform, TimeGrid, Trailing
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.inversion import inversion_steps, invert
from unfog.sampling.sampler import sample

SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear(), cosine()]
RNG = Rng.of(4, 8)


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.6]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.08)


def examples() -> Tensor:
    # Draws, so that the step to clean data can be answered with them.
    return data(Cosine()).sample(torch.randn(8, 2, generator=torch.Generator().manual_seed(3)).double(), UNIFORM)


UNIFORM = (torch.arange(8, dtype=torch.float64) + 0.5) / 8


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("grid", [Trailing(), Karras(), LogSNRUniform(0.01)], ids=lambda grid: type(grid).__name__)
def test_corrected_inversion_and_ddim_are_a_round_trip(schedule: Schedule, grid: TimeGrid) -> None:
    times = grid.times(schedule, 12)
    latent = invert(data(schedule), examples(), times, iterations=20)
    back = sample(data(schedule), DDIM(), times, latent, rng=RNG)
    torch.testing.assert_close(back, examples(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", [VariancePreserving(), RectifiedFlow()], ids=repr)
def test_the_published_inversion_is_of_first_order(schedule: Schedule) -> None:
    # From one noise level to another: without the jump to clean data, which no grid makes small.
    x, denoiser = examples(), data(schedule)

    def error(steps: int) -> float:
        times = schedule.time(torch.linspace(-4.0, 4.0, steps + 1, dtype=torch.float64))
        back = sample(denoiser, DDIM(), times, invert(denoiser, x, times), rng=RNG)
        return (back - x).abs().mean().item()

    assert error(40) / error(80) == pytest.approx(2.0, abs=0.4)
    assert error(80) < 0.1


def test_its_step_is_ddim_backwards_with_the_estimate_where_it_stands() -> None:
    # Song, Meng, Ermon 2021, section 4.3, in x0 and eps.
    schedule, x = VariancePreserving(), examples()
    times = torch.tensor([0.4, 0.3], dtype=torch.float64)
    alpha, sigma = schedule.scales(times)
    x0 = data(schedule)(x, times[1]).x0
    eps = (x - alpha[1] * x0) / sigma[1]
    found = invert(data(schedule), x, times)
    torch.testing.assert_close(found, alpha[0] * x0 + sigma[0] * eps, rtol=0, atol=1e-13)


def test_every_step_of_the_grid_is_seen_from_data_to_noise() -> None:
    times = Trailing().times(Cosine(), 5)
    seen = list(inversion_steps(data(Cosine()), examples(), times, iterations=2))
    assert [step.t.item() for step in seen] == times[:-1].flip(0).tolist()
    assert [step.index for step in seen] == list(range(5))
    assert [step.progress for step in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert torch.equal(seen[-1].x, invert(data(Cosine()), examples(), times, iterations=2))


@pytest.mark.parametrize("iterations", [0, 3])
def test_an_example_does_not_depend_on_its_batch(iterations: int) -> None:
    times = Trailing().times(Cosine(), 6)
    together = invert(data(Cosine()), examples(), times, iterations=iterations)
    alone = invert(data(Cosine()), examples()[2:5], times, iterations=iterations)
    torch.testing.assert_close(alone, together[2:5], rtol=0, atol=1e-9)


def test_conditions_and_guidance_are_inverted_with_the_rest() -> None:
    schedule = VariancePreserving()
    label, null = torch.arange(8) % 3, torch.full((8,), 3)
    denoiser = ClassifierFree(data(schedule), 1.5, {"label": null})
    times = Karras().times(schedule, 12)
    x = data(schedule).means[label] + 0.05
    latent = invert(denoiser, x, times, {"label": label}, iterations=40)
    back = sample(denoiser, DDIM(), times, latent, {"label": label}, rng=RNG)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


def test_a_network_of_many_elements_is_inverted_too() -> None:
    class Smooth(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.mix = torch.nn.Parameter(0.1 * torch.randn(64, 64, generator=generator, dtype=torch.float64))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.tanh(x @ self.mix + c_noise[:, None] / 1000)

    schedule = VariancePreserving()
    denoiser = NetworkDenoiser(Smooth(), Gaussian(schedule), V())
    times = Trailing().times(schedule, 10)[:-1]
    x = 0.5 * torch.randn(3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        latent = invert(denoiser, x, times, iterations=40)
        back = sample(denoiser, DDIM(), times, latent, rng=RNG[:3])
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


def test_what_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match="more steps: one from pure noise to clean data forgets the noise"):
        invert(data(Cosine()), examples(), torch.tensor([1.0, 0.0]), iterations=1)
    with pytest.raises(ValueError, match="iterations of at least 0, not -1"):
        invert(data(Cosine()), examples(), torch.tensor([1.0, 0.5, 0.0]), iterations=-1)


def test_a_nan_is_told() -> None:
    class Broken(Denoiser):
        process = Gaussian(Cosine())

        def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
            return Prediction(torch.full_like(x_t, torch.nan))

    with pytest.raises(FloatingPointError, match="are not finite"):
        invert(Broken(), examples(), torch.tensor([0.5, 0.1]))
