import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving, linear
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import LogSNRUniform, Trailing
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.multistep import DPMSolverPP2M, UniPC
from unfog.sampling.picard import Picard
from unfog.sampling.sampler import TableSampler, sample

RNG = Rng.of(6, 5)
SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear()]


def data(schedule: Schedule) -> analytic.Analytic:
    means = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.6]], dtype=torch.float64)
    return analytic.mixture(Gaussian(schedule), means, 0.05)


def prior(schedule: Schedule) -> Tensor:
    return Gaussian(schedule).prior((2,), rng=RNG, dtype=torch.float64)


class Counting(Denoiser):
    """Counts its calls, and the states it is asked about."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.process, self.inner, self.sizes = inner.process, inner, list[int]()

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        assert t.shape == x_t.shape[:1]
        self.sizes.append(len(x_t))
        prediction: Prediction = self.inner(x_t, t, cond)
        return prediction


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP2M(), UniPC(2, corrector=False)], ids=repr)
@pytest.mark.parametrize("window", [1, 4, 30])
def test_without_tolerance_it_is_the_table(schedule: Schedule, solver: TableSampler, window: int) -> None:
    times = LogSNRUniform(0.01).times(schedule, 12)
    found = sample(data(schedule), Picard(solver, window, 0.0), times, prior(schedule), rng=RNG)
    expected = sample(data(schedule), solver, times, prior(schedule), rng=RNG)
    # The same numbers in other batches; states of size 80 at first.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_with_a_tolerance_it_is_near_the_table_in_fewer_batches(tolerance: float) -> None:
    schedule, times = Cosine(), Trailing().times(Cosine(), 60)
    counting = Counting(data(schedule))
    found = sample(counting, Picard(DDIM(), 60, tolerance), times, prior(schedule), rng=RNG)
    expected = sample(data(schedule), DDIM(), times, prior(schedule), rng=RNG)
    # Allowed changes of several states, and what later steps make of them.
    assert (found - expected).abs().max() < 10 * tolerance
    assert len(counting.sizes) < 30
    assert max(counting.sizes) <= 60 * 5


def test_a_smaller_tolerance_takes_more_batches() -> None:
    schedule, times = Cosine(), Trailing().times(Cosine(), 40)
    calls = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        counting = Counting(data(schedule))
        sample(counting, Picard(DDIM(), 40, tolerance), times, prior(schedule), rng=RNG)
        calls.append(len(counting.sizes))
    assert calls[0] < calls[1] < calls[2] <= 40


def test_windows_are_as_long_as_asked_and_end_with_the_grid() -> None:
    counting = Counting(data(Cosine()))
    sample(counting, Picard(DDIM(), 3, 0.0), Trailing().times(Cosine(), 7), prior(Cosine()), rng=RNG)
    # One step done a batch at least: five samples of three states each, fewer towards the end.
    assert counting.sizes[0] == 15
    assert all(size <= 15 for size in counting.sizes)
    assert len(counting.sizes) <= 7


def test_a_sample_goes_on_by_itself() -> None:
    schedule, times = Cosine(), Trailing().times(Cosine(), 20)
    sampler = Picard(DDIM(), 6, 1e-3)
    together = sample(data(schedule), sampler, times, prior(schedule), rng=RNG)
    for k in range(5):
        alone = sample(data(schedule), sampler, times, prior(schedule)[k : k + 1], rng=RNG[k : k + 1])
        torch.testing.assert_close(alone, together[k : k + 1], rtol=0, atol=1e-12)


def test_a_point_mass_takes_one_batch_a_window_and_one_more() -> None:
    # After the first batch all estimates are right; the second finds that nothing changes any more.
    schedule = Cosine()
    counting = Counting(analytic.point_mass(Gaussian(schedule), torch.tensor([0.3, -0.2], dtype=torch.float64)))
    sample(counting, Picard(DDIM(), 16, 1e-6), Trailing().times(schedule, 16), prior(schedule), rng=RNG)
    assert len(counting.sizes) == 2


def test_guidance_and_conditions_go_with_their_samples() -> None:
    schedule, times = VariancePreserving(), Trailing().times(VariancePreserving(), 12)
    label, null = torch.tensor([0, 1, 2, 1, 0]), torch.full((5,), 3)
    guided = ClassifierFree(data(schedule), 2.0, {"label": null})
    found = sample(guided, Picard(DDIM(), 5, 0.0), times, prior(schedule), {"label": label}, rng=RNG)
    expected = sample(guided, DDIM(), times, prior(schedule), {"label": label}, rng=RNG)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="solver to be a table of one evaluation a step"):
        Picard(Heun())
    with pytest.raises(ValueError, match="window of at least 1"):
        Picard(window=0)
    with pytest.raises(ValueError, match=r"tolerance in \[0, 1\)"):
        Picard(tolerance=-1e-3)
    with pytest.raises(ValueError, match=r"solver to move once a step, such as DDIM\(\), or UniPC\(corrector=False\)"):
        sample(data(Cosine()), Picard(UniPC()), Trailing().times(Cosine(), 4), prior(Cosine()), rng=RNG)
    with pytest.raises(ValueError, match="a solver without noise"):
        sample(data(Cosine()), Picard(DDPM()), Trailing().times(Cosine(), 4), prior(Cosine()), rng=RNG)
