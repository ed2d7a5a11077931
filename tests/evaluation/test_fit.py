from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from unfog.data.dataset import Dataset
from unfog.diffusion import analytic
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine
from unfog.evaluation.fit import Conditions, Fit, FitEffort, fit_steps, fixed_distances, solved
from unfog.pipeline import Pipeline
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Conditioner, Label, Unconditional
from unfog.sampling.fitted import Fitted
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import Leading, LogSNRUniform, Trailing
from unfog.sampling.guidance.bounds import Clip
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleRequest, SampleSettings

FIXED = [
    SampleSettings(DDIM(), Trailing(), 4),
    SampleSettings(DPMSolverPP2M(), Trailing(), 4),
    SampleSettings(DPMSolverPP2M(), LogSNRUniform(0.1, 20.0), 4),
]
ACCURATE = SampleSettings(DPMSolverPP2M(), LogSNRUniform(), 32)
EFFORT = FitEffort(48, 48, 64, evaluations=20_000, first_look=4, batch_size=16, accurate=ACCURATE)


class Blobs(nn.Module):
    """A network that is right on a mixture of two Gaussians, which are its classes; class 2 is the null."""

    def __init__(self) -> None:
        super().__init__()
        means = torch.tensor([[0.8, -0.3], [-0.5, 0.6]], dtype=torch.float64).reshape(2, 1, 1, 2)
        self.data = analytic.mixture(Gaussian(Cosine()), means, 0.2)
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        t = c_noise[0] / 1000.0
        alpha, sigma = (f(t) for f in (Cosine().alpha, Cosine().sigma))
        x0 = self.data(x, t, {} if label is None else {"label": label}).x0
        return V().target(x0, (x - alpha * x0) / sigma, alpha, sigma)


def model(conditioner: Conditioner | None = None) -> Pipeline:
    denoiser = NetworkDenoiser(Blobs(), Gaussian(Cosine()), V())
    return Pipeline(denoiser, conditioner or Label(2, 0.1), Identity(), (1, 1, 2), SampleSettings(DDIM(), Trailing()))


@pytest.fixture(scope="module")
def fit() -> Fit:
    *_, (_, found) = fit_steps(model(), FIXED, 4, effort=EFFORT)
    assert found is not None
    return found


def test_a_fitted_sampler_is_much_nearer_than_the_best_fixed_one(fit: Fit) -> None:
    assert fit.kept
    assert fit.ratio == fit.distance.value / fit.fixed_distance.value
    assert fit.ratio < 0.6
    assert fit.distance.count == 64
    assert isinstance(fit.settings.sampler, Fitted)
    assert fit.settings.evaluations == 4


def test_it_is_nearer_on_other_noises_too_through_the_pipeline(fit: Fit) -> None:
    pipeline, labels = model(), [k % 2 for k in range(64)]
    results = [
        pipeline.sample(SampleRequest(64, labels, seed=99, settings=settings)).x
        for settings in (fit.settings, fit.fixed, ACCURATE)
    ]
    distances = [(x - results[2]).square().flatten(1).mean(1).sqrt().mean() for x in results[:2]]
    assert distances[0] < 0.7 * distances[1]


def test_a_fit_is_the_same_again(fit: Fit) -> None:
    *_, (_, again) = fit_steps(model(), FIXED, 4, effort=EFFORT)
    assert again is not None
    assert again.sampler == fit.sampler
    assert again.distance == fit.distance


def test_other_noises_give_another_fit(fit: Fit) -> None:
    *_, (_, other) = fit_steps(model(), FIXED, 4, seed=1, effort=EFFORT)
    assert other is not None
    assert other.sampler != fit.sampler


def test_each_step_is_told_and_nearer() -> None:
    told = [step.told for step in fit_steps(model(), FIXED, 4, effort=replace(EFFORT, evaluations=8_000))]
    assert told[:2] == ["solved 160 trajectories accurately", "compared 3 fixed tables"]
    distances = [float(words.split()[-1]) for words in told if words.startswith("step")]
    assert len(distances) >= 2
    # They are told in four digits.
    assert all(a >= b for a, b in pairwise(distances))
    assert told[-1] == "done"


def test_tables_that_cannot_be_compared_are_passed_over() -> None:
    others = [
        SampleSettings(DDPM(), Trailing(), 4),  # injects noise
        SampleSettings(DDIM(), Trailing(), 5),  # too many evaluations
        SampleSettings(DDIM(), Leading(levels=2), 4),  # a grid that cannot hold the steps
        replace(FIXED[0], guidance=2.0),  # the same table again
    ]
    told = [step.told for step in fit_steps(model(), [*FIXED, *others], 4, effort=replace(EFFORT, evaluations=1))]
    assert "compared 3 fixed tables" in told


def test_a_fixed_table_that_is_as_near_is_preferred() -> None:
    """Heun's second evaluation at one time is no point of a fitted table, so no fit can begin from it."""
    sparse = replace(EFFORT, evaluations=1, noises=2, choosing=2, held_out=8)
    fixed = [SampleSettings(Heun(), LogSNRUniform(0.02, 80.0), 12), SampleSettings(DDIM(), LogSNRUniform(0.9, 1.1), 23)]
    *_, (_, found) = fit_steps(model(), fixed, 23, effort=sparse)
    assert found is not None
    assert not found.kept
    assert found.settings == found.fixed == fixed[0]


def test_guidance_and_bounds_are_those_that_it_is_used_with() -> None:
    pipeline, bounds = model(), Clip(0.9)
    few = replace(EFFORT, noises=16, choosing=16, held_out=16, evaluations=3_000)
    *_, (_, found) = fit_steps(pipeline, FIXED, 4, guidance=2.0, bounds=bounds, effort=few)
    assert found is not None
    assert (found.settings.guidance, found.settings.bounds) == (2.0, bounds)
    (part,) = solved(pipeline, Conditions(2.0, bounds), 7, range(3, 7), few)
    request = SampleRequest(4, [1, 0, 1, 0], seed=7, first=3, settings=replace(ACCURATE, guidance=2.0, bounds=bounds))
    torch.testing.assert_close(part.solution, pipeline.sample(request).x, rtol=0, atol=1e-6)


def test_a_model_of_attributes_is_solved_for_those_of_examples(
    told_pipeline: tuple[Pipeline, object], shapes: tuple[Dataset, Dataset]
) -> None:
    pipeline, test = told_pipeline[0], shapes[1]
    (part,) = solved(pipeline, Conditions(2.0, None, test), 7, range(8, 12), EFFORT)
    told = [tuple(row) for row in test.gather(torch.tensor([8, 9, 0, 1]))["attributes"].tolist()]
    asked = SampleRequest(4, attributes=told, seed=7, first=8, settings=replace(ACCURATE, guidance=2.0))
    torch.testing.assert_close(part.solution, pipeline.sample(asked).x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("conditioner", [Unconditional(), Label(2, 0.0)])
def test_a_model_that_cannot_be_guided_is_refused(conditioner: Conditioner) -> None:
    with pytest.raises(ValueError, match="a guidance scale of 1 for a model that cannot be guided, got 2"):
        next(fit_steps(model(conditioner), FIXED, 4, guidance=2.0, effort=EFFORT))


def test_a_number_of_evaluations_that_no_table_has_is_refused() -> None:
    small = replace(EFFORT, noises=2, choosing=2, held_out=2, first_look=2)
    with pytest.raises(ValueError, match="a fixed table of 5 evaluations to begin from"):
        list(fit_steps(model(), FIXED, 5, effort=small))


def test_distances_of_a_fixed_sampler_are_those_to_the_solution() -> None:
    parts = solved(model(), Conditions(), 0, range(20), EFFORT)
    assert [len(part) for part in parts] == [16, 4]
    assert fixed_distances(ACCURATE, parts).max() == 0
    assert fixed_distances(FIXED[0], parts).min() > 0


@pytest.mark.parametrize("name", ["noises", "choosing", "evaluations", "first_look", "second_look", "batch_size"])
def test_an_effort_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of at least 1, got 0"):
        replace(EFFORT, **{name: 0})
