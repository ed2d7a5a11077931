from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import VariancePreserving
from unfog.pipeline import Pipeline
from unfog.sampling.adaptive import RK45
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Attributes, Combined, Conditioner, Label, Unconditional
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.guidance.bounds import Clip
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.guidance.loss import LossGuided
from unfog.sampling.langevin import PredictorCorrector
from unfog.sampling.multistep import UniPC
from unfog.sampling.picard import Picard
from unfog.sampling.request import Condition, SampleRequest, SampleSettings
from unfog.sampling.restart import Restart


class Small(nn.Module):
    """Three numbers that see a class and the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.6))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.scale * x + (label - 1)[:, None] + c_noise[:, None] / 1000)


def small(**settings: Any) -> Pipeline:
    denoiser = NetworkDenoiser(Small(), Gaussian(VariancePreserving()), V())
    return Pipeline(denoiser, Label(3, 0.1), Identity(), (4,), SampleSettings(grid=Trailing(), steps=6, **settings))


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), RK45(), Picard(window=4), Restart()], ids=repr)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_progress_rises_to_the_end_and_each_batch_is_finished_once(sampler: Any, guidance: float) -> None:
    pipeline = small(sampler=sampler, guidance=guidance)
    seen = list(pipeline.stream(SampleRequest(5, [0, 1, 2, 1, 0], batch_size=2)))
    progress = [preview.progress for preview in seen]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert [preview.start for preview in seen if preview.finished] == [0, 2, 4]
    finished = torch.cat([preview.step.x for preview in seen if preview.finished])
    other = pipeline.sample(SampleRequest(5, [0, 1, 2, 1, 0], batch_size=5)).x
    # Float32, in batches of other lengths; Picard's states are done within a tolerance of 1e-3 either way.
    torch.testing.assert_close(finished, other, rtol=0, atol=1e-4)


def test_the_cost_of_an_adaptive_sampler_is_a_bound() -> None:
    assert small(sampler=Heun()).settings.cost == "11 evaluations"
    assert small(sampler=RK45(max_evaluations=300), guidance=2.0).settings.cost == "at most 600 evaluations"


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (LearnedDDPM(), "has not learned its variance"),
        (UniPC(3), "expected at least 3 steps for UniPC of order 3, not 2"),
        (Picard(DDPM()), "a solver without noise"),
        (PredictorCorrector(UniPC(1)), "predictor to move once a step"),
        (Restart(DDPM()), "a solver without noise"),
    ],
    ids=repr,
)
def test_what_a_sampler_cannot_do_is_refused_before_anything_is_drawn(sampler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(sampler=sampler).check(SampleRequest(labels=0, settings=SampleSettings(sampler, Trailing(), 2)))


class Told(nn.Module):
    """A picture of 4x4 pixels that sees a class and two attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.6))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor, attributes: Tensor) -> Tensor:
        told = label + 0.5 * attributes[:, 0] - 0.25 * attributes[:, 1]
        return torch.tanh(self.scale * x + told[:, None, None, None] + c_noise[:, None, None, None] / 1000)


def told(conditioner: Conditioner | None = None, **settings: Any) -> Pipeline:
    denoiser = NetworkDenoiser(Told(), Gaussian(VariancePreserving()), V())
    conditioner = conditioner or Combined([Label(3, 0.1), Attributes((2, 3), 0.0)], 0.1)
    return Pipeline(denoiser, conditioner, Identity(), (1, 4, 4), SampleSettings(DDIM(), Trailing(), 4, **settings))


def test_what_is_not_told_is_the_null() -> None:
    pipeline = told()
    whole = pipeline.sample(SampleRequest(2, 1, attributes=(2, 3))).x
    assert torch.equal(pipeline.sample(SampleRequest(2, 1)).x, whole)


def test_each_sample_has_its_own_attributes() -> None:
    pipeline = told(guidance=1.5)
    many = pipeline.sample(SampleRequest(3, [0, 1, 2], attributes=((0, 1), (1, 3), (2, 0)), batch_size=2)).x
    one = pipeline.sample(SampleRequest(1, 1, first=1, attributes=(1, 3))).x
    torch.testing.assert_close(many[1:2], one, rtol=0, atol=1e-6)


def test_a_negative_condition_takes_the_place_of_the_null() -> None:
    pipeline = told(guidance=3.0)
    asked = SampleRequest(2, 0, negative=Condition(2, (1, 1)))

    def by_hand(denoiser: Any) -> Any:
        return ClassifierFree(denoiser, 3.0, {"label": torch.tensor([2, 2]), "attributes": torch.tensor([[1, 1]] * 2)})

    alone = pipeline.guided(by_hand).sample(SampleRequest(2, 0, settings=pipeline.settings.with_guidance(1.0)))
    torch.testing.assert_close(pipeline.sample(asked).x, alone.x)


def test_one_further_condition_is_classifier_free_guidance() -> None:
    other = told().sample(SampleRequest(2, also=(Condition(1, (0, 2), scale=2.5),))).x
    usual = told(guidance=2.5).sample(SampleRequest(2, 1, attributes=(0, 2))).x
    torch.testing.assert_close(other, usual)


def test_a_condition_with_a_region_holds_there_alone() -> None:
    left = Condition(1, scale=2.0, region=(0, 0, 1, 0.5))
    sampled = told().sample(SampleRequest(2, also=(left,))).x
    everywhere = told(guidance=2.0).sample(SampleRequest(2, 1)).x
    nowhere = told().sample(SampleRequest(2)).x
    # The network looks at each pixel by itself, so the halves are those of the two whole pictures.
    torch.testing.assert_close(sampled[..., :2], everywhere[..., :2])
    torch.testing.assert_close(sampled[..., 2:], nowhere[..., 2:])


def test_guidance_is_left_out_beyond_its_interval() -> None:
    request = SampleRequest(2, 1)
    guided = told(guidance=3.0, interval=(1e3, 1e4)).sample(request).x
    assert torch.equal(guided, told().sample(request).x)
    assert not torch.equal(told(guidance=3.0, interval=(0.1, 1e4)).sample(request).x, guided)


def test_guidance_of_another_kind_is_bounded_last() -> None:
    def brighter(denoiser: Any) -> Any:
        return LossGuided(denoiser, lambda x0, t: -x0.flatten(1).sum(1), 50.0)

    free = told().guided(brighter).sample(SampleRequest(2, 0)).x
    bounded = told(bounds=Clip(0.5)).guided(brighter).sample(SampleRequest(2, 0)).x
    assert free.abs().max() > 0.5
    assert bounded.abs().max() <= 0.5 + 1e-6  # the last state is the last estimate, but for rounding


@pytest.mark.parametrize(
    ("request_", "settings", "message"),
    [
        (SampleRequest(1, 3), {}, "labels from 0 to 2, got"),
        (SampleRequest(1, attributes=(0,)), {}, "2 attributes, each from 0 to"),
        (SampleRequest(1, attributes=(0, 4)), {}, "2 attributes, each from 0 to"),
        (SampleRequest(1, attributes=(0, -1)), {}, "2 attributes, each from 0 to"),
        (SampleRequest(1, 0, negative=Condition(1)), {}, "other than 1 to be guided away from a negative"),
        (SampleRequest(1, 0), {"rescale": 0.5}, "other than 1 and no further conditions with rescale"),
        (SampleRequest(1, 0), {"classifier": 1.0}, "a classifier of noisy data"),
        (SampleRequest(1, 0), {"weak": 2.0}, "a weaker model"),
        (SampleRequest(1, 0), {"interval": (0.1, 1.0)}, "some guidance within interval"),
        (SampleRequest(1), {"guidance": 2.0}, "labels or attributes to be guided towards"),
    ],
)
def test_what_a_model_cannot_do_is_refused(request_: SampleRequest, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        told(**settings).check(request_)


def test_a_model_without_conditions_says_that_it_has_none() -> None:
    pipeline = told(Unconditional(), guidance=2.0)
    with pytest.raises(ValueError, match=r"a guidance scale of 1, got 2\.0: this model was trained without classes"):
        pipeline.check(SampleRequest(1))


def test_a_model_that_was_told_everything_wants_to_be_told_everything() -> None:
    strict = Combined([Label(3, 0.1), Attributes((2, 3), 0.0, each=0.0)], 0.1)
    told(strict).check(SampleRequest(1, 0, attributes=(0, 2)))
    with pytest.raises(ValueError, match=r"dropout_each=0\.2"):
        told(strict).check(SampleRequest(1, 0, attributes=(0, 3)))
