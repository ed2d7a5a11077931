import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, VariancePreserving
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import LogSNRUniform, Trailing
from unfog.sampling.langevin import AnnealedLangevin, PredictorCorrector
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.sampler import Sampler, sample

SCHEDULES = [VariancePreserving(), Cosine(), RectifiedFlow(3.0), VarianceExploding()]
MEAN, VARIANCE = 0.8, 0.3


def gaussian(schedule: Schedule, size: int) -> analytic.Analytic:
    return analytic.gaussian(Gaussian(schedule), torch.full((size,), MEAN, dtype=torch.float64), VARIANCE)


def draw(sampler: Sampler, schedule: Schedule, times: Tensor, count: int, size: int) -> Tensor:
    rng = Rng.of(3, count)
    x = Gaussian(schedule).prior((size,), rng=rng, dtype=torch.float64)
    return sample(gaussian(schedule, size), sampler, times, x, rng=rng)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_corrections_leave_the_right_marginal_where_it_is(schedule: Schedule) -> None:
    # The state is drawn from the marginal at one level and stays there, but for a predictor's step of nothing.
    time, size, count = 0.4, 64, 300
    alpha, sigma = (v.item() for v in schedule.scales(torch.tensor(time, dtype=torch.float64)))
    rng = Rng.of(1, count)
    deviation = math.sqrt(alpha**2 * VARIANCE + sigma**2)
    x = alpha * MEAN + deviation * rng.normal((size,), Purpose.SCRATCH).double()
    times = torch.tensor([time, time - 1e-9], dtype=torch.float64)
    found = sample(gaussian(schedule, size), PredictorCorrector(DDIM(), 0.1, 30), times, x, rng=rng)
    # 19200 numbers: four standard errors of mean and variance are 3 % and 4 %; the steps' own error, r^2 = 1 %, and
    # that of their size, of which one of 64 is noise, come on top.
    assert found.mean().item() == pytest.approx(alpha * MEAN, abs=0.03 * deviation)
    assert found.var().item() == pytest.approx(deviation**2, rel=0.06)
    # Each correction moves a state by sqrt(2 e) = 2 r deviations, about; thirty make it another one.
    kept = torch.corrcoef(torch.stack([found.flatten(), x.flatten()]))[0, 1]
    assert 0.3 < kept < 0.8


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_corrections_bring_a_coarse_predictor_nearer_to_the_data(schedule: Schedule) -> None:
    times = LogSNRUniform(0.05).times(schedule, 8)
    errors = [
        abs(draw(sampler, schedule, times, 200, 64).var().item() - VARIANCE) / VARIANCE
        for sampler in (DDIM(), PredictorCorrector(DDIM(), 0.2, 2))
    ]
    # DDIM lacks more than a fifth of the variance; sampling noise is 3 %.
    assert errors[0] > 0.2
    assert errors[1] < 0.5 * errors[0]


def test_the_correction_is_that_of_its_paper() -> None:
    # Song et al. 2021 (arXiv 2011.13456), algorithms 2 and 4: one step of the predictor, one of the corrector.
    schedule, size, snr = VarianceExploding(), 256, 0.16
    rng, times = Rng.of(4, 3), torch.tensor([0.01, 0.005], dtype=torch.float64)
    denoiser, x = gaussian(schedule, size), 1.3 * rng.normal((size,), Purpose.SCRATCH).double()
    seen = list(PredictorCorrector(DDIM(), snr).steps(denoiser, x, times, rng=rng))
    assert [step.t.item() for step in seen] == [0.005, 0.005]
    predicted, sigma = seen[0].x, 80 * 0.005
    g = (denoiser(predicted, times[1]).x0 - predicted) / sigma**2
    z = rng.at(3 << 30).normal((size,), Purpose.STEP).double()
    for k in range(3):
        e = 2 * (snr * math.sqrt(size) / g[k].norm().item()) ** 2
        torch.testing.assert_close(seen[1].x[k], predicted[k] + e * g[k] + math.sqrt(2 * e) * z[k], rtol=0, atol=1e-12)


def test_a_score_of_nothing_makes_no_step_without_bound() -> None:
    # At the centre of the marginal the score vanishes.
    schedule = VarianceExploding()
    denoiser = analytic.gaussian(Gaussian(schedule), torch.zeros(2, dtype=torch.float64), VARIANCE)
    times = torch.tensor([0.01, 0.005], dtype=torch.float64)
    found = sample(denoiser, PredictorCorrector(DDIM()), times, torch.zeros(2, 2), rng=Rng.of(0, 2))
    # sqrt(2 e) = 2 snr sqrt(1 + sigma^2) at most, times normal numbers.
    assert found.abs().max() < 2 * 0.16 * math.sqrt(1 + 0.4**2) * 4


def test_corrections_come_after_all_steps_but_that_to_clean_data() -> None:
    schedule, rng = Cosine(), Rng.of(0, 2)
    x = Gaussian(schedule).prior((2,), rng=rng, dtype=torch.float64)
    times = Trailing().times(schedule, 3)
    seen = list(PredictorCorrector(DDPM(), 0.1, 2).steps(gaussian(schedule, 2), x, times, rng=rng))
    assert [step.t.item() for step in seen] == [times[k].item() for k in (1, 1, 1, 2, 2, 2, 3)]
    assert torch.equal(seen[-1].x, seen[-1].x0)
    assert PredictorCorrector(DDPM(), 0.1, 2).evaluations(3) == 7


def test_multistep_tables_predict_as_well() -> None:
    found = draw(PredictorCorrector(DPMSolverPP2M(), 0.1), Cosine(), LogSNRUniform(0.05).times(Cosine(), 10), 200, 64)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.var().item() == pytest.approx(VARIANCE, rel=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_annealed_langevin_finds_the_distribution_of_the_data(schedule: Schedule) -> None:
    times = LogSNRUniform(0.05, 40.0).times(schedule, 20)
    found = draw(AnnealedLangevin(repeats=20), schedule, times, 60, 16)
    # 960 numbers: four standard errors are 7 % of a deviation, and 18 % of the variance; the steps add a tenth of it
    # (half of the rate), and a surplus of the level before.
    assert found.mean().item() == pytest.approx(MEAN, abs=0.07)
    assert found.var().item() == pytest.approx(VARIANCE, rel=0.3)


def test_annealed_langevin_is_algorithm_1_of_its_paper() -> None:
    # Song, Ermon 2019 (arXiv 1907.05600), algorithm 1, on levels below the prior's, with a step to clean data.
    schedule, rng = VarianceExploding(), Rng.of(7, 3)
    sigmas, rate = [80.0, 1.0, 0.6, 0.3], 0.2
    epsilon = rate * sigmas[-1] ** 2
    denoise = gaussian(schedule, 2)
    times = torch.tensor([*sigmas, 0.0], dtype=torch.float64) / 80.0
    x = start = torch.full((3, 2), 30.0, dtype=torch.float64)
    for i, sigma in enumerate(sigmas[1:]):
        for j in range(4):
            a = epsilon * sigma**2 / sigmas[-1] ** 2
            score = (denoise(x, times[1 + i]).x0 - x) / sigma**2
            z = rng.at((3 << 30) + 4 * i + j).normal((2,), Purpose.STEP).double()
            x = x + a / 2 * score + math.sqrt(a) * z
    found = sample(denoise, AnnealedLangevin(rate, 4), times, start, rng=rng)
    torch.testing.assert_close(found, denoise(x, times[-2]).x0, rtol=0, atol=1e-11)


def test_bad_settings_are_refused() -> None:
    for predictor in (Heun(), AnnealedLangevin()):
        with pytest.raises(ValueError, match="predictor to be a table of one evaluation a step"):
            PredictorCorrector(predictor)
    for make, message in (
        (lambda: PredictorCorrector(snr=0.0), r"snr in \(0, 1\)"),
        (lambda: PredictorCorrector(corrections=0), "corrections of at least 1"),
        (lambda: AnnealedLangevin(rate=2.0), r"rate in \(0, 2\), not 2.0: beyond it the noise grows"),
        (lambda: AnnealedLangevin(repeats=0), "repeats of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
