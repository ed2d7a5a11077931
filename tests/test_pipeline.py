from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import VariancePreserving
from unfog.pipeline import Pipeline, SampleRequest, SampleSettings
from unfog.sampling.adaptive import RK45
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Label
from unfog.sampling.gaussian import DDIM, DDPM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.langevin import PredictorCorrector
from unfog.sampling.multistep import UniPC
from unfog.sampling.picard import Picard
from unfog.sampling.restart import Restart


def test_parts_of_a_request_ask_for_the_same_samples() -> None:
    request = SampleRequest(5, [4, 3, 2, 1, 0], seed=9, first=10)
    parts = [request.part(0, 2), request.part(2, 5)]
    asked = [(part.first + k, part.label_of(k), part.seed) for part in parts for k in range(part.count)]
    assert asked == [(request.first + k, request.label_of(k), request.seed) for k in range(request.count)]


@pytest.mark.parametrize("labels", [3, None])
def test_a_part_keeps_the_label_of_all(labels: int | None) -> None:
    assert SampleRequest(5, labels).part(1, 3).labels == labels


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
