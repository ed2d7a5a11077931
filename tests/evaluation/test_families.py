import math

import pytest
import torch
from torch import Tensor

from unfog.data.batch import Batch
from unfog.diffusion.nn.gan import Generator
from unfog.diffusion.random import Rng
from unfog.evaluation.families import (
    Contender,
    Diffused,
    Family,
    OneShot,
    baseline,
    count_parameters,
    diffusion,
)

BASELINES = (Family.GAN, Family.VAE, Family.FLOW)


@pytest.fixture
def made(toy_dataset, request) -> Contender:
    return baseline(request.param, toy_dataset(40, 0), classes=2, target=20_000, seed=3, batch_size=8)


@pytest.mark.parametrize("made", BASELINES, indirect=True)
def test_all_players_count_and_what_draws_is_a_part_of_them(made: Contender) -> None:
    assert 0 < made.drawing_parameters <= made.parameters
    assert made.parameters == sum(map(count_parameters, made.task.players().values()))


@pytest.mark.parametrize("family", BASELINES)
def test_a_baseline_has_as_many_parameters_as_it_is_to_have(toy_dataset, family: Family) -> None:
    made = baseline(family, toy_dataset(40, 0), classes=2, target=400_000, seed=3, batch_size=8)
    # A step of the width, which is a multiple of 4, changes so small a network by about a tenth.
    assert abs(math.log(made.parameters / 400_000)) < 0.06


@pytest.mark.parametrize("made", BASELINES, indirect=True)
def test_a_sample_does_not_depend_on_count_and_batch(made: Contender) -> None:
    made.task.double()
    labels = torch.tensor([0, 1, 1, 0, 1])
    many = made.sampling().sample(5, labels, 7, batch_size=5)
    few = made.sampling().sample(3, labels[:3], 7, batch_size=2)
    torch.testing.assert_close(many[:3], few, rtol=0, atol=1e-9)
    assert many.shape == (5, 1, 8, 8)
    assert many.abs().max() <= 1
    other = made.sampling().sample(5, labels, 8)
    assert not torch.allclose(many, other)


@pytest.mark.parametrize("family", BASELINES)
def test_weights_follow_the_seed_alone(toy_dataset, family: Family) -> None:
    data = toy_dataset(40, 0)

    def weights(seed: int) -> list[Tensor]:
        torch.rand(1)
        return list(baseline(family, data, classes=None, target=20_000, seed=seed, batch_size=8).task.parameters())

    before = torch.random.get_rng_state()
    one, again, other = weights(1), weights(1), weights(2)
    torch.random.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("made", [Family.VAE, Family.FLOW], indirect=True)
def test_bits_are_those_of_the_loss(made: Contender, toy_dataset) -> None:
    test = toy_dataset(30, 1)
    assert made.bits is not None
    with torch.no_grad():
        found = made.bits(test, 30, 5)
        values, ids = test.gather(torch.arange(30)), torch.arange(30)
        losses = [
            made.task.loss(Batch(values, ids, 0 * ids, ids), "model", rng=Rng.of(seed, 30)).total for seed in range(4)
        ]
    bits = sum(map(float, losses)) / 4 / (math.log(2) if made.family is Family.VAE else 1.0)
    # Of other draws of latents or noise; a network that was not trained has a wide spread.
    assert found.score.value == pytest.approx(bits, rel=0.05)
    assert found.score.count == 30


@pytest.mark.parametrize("made", [Family.GAN], indirect=True)
def test_a_gan_has_no_bits(made: Contender) -> None:
    assert made.bits is None


def test_a_diffusion_model_draws_what_its_pipeline_draws(toy_pipeline) -> None:
    from unfog.sampling.request import SampleRequest

    pipeline, _ = toy_pipeline()
    labels = torch.tensor([0, 1, 0])
    drawn = Diffused(pipeline).sample(3, labels, 4, batch_size=2)
    assert torch.equal(drawn, pipeline.sample(SampleRequest(3, labels.tolist(), 4)).x)
    assert Diffused(pipeline).evaluations == 3


def test_a_diffusion_model_takes_part(toy_pipeline, toy_dataset) -> None:
    from unfog.training.config import TrainConfig

    pipeline, task = toy_pipeline()
    made = diffusion(lambda: pipeline, task, TrainConfig(4, 8), None, 2, {"model": "toy"})
    assert made.parameters == 1
    assert made.bits is not None
    found = made.bits(toy_dataset(30, 1), 4, 0)
    assert "upper bound" in found.kind
    assert found.score.value > 0


def test_samples_that_are_not_finite_are_refused() -> None:
    network = torch.nn.Linear(2, 4)
    broken = OneShot(network, lambda z, label: torch.full((len(z), 1, 2, 2), float("nan")), 2, "broken")
    with pytest.raises(FloatingPointError, match="broken"):
        broken.sample(2, None, 0)


def test_what_is_no_baseline_is_refused(toy_dataset) -> None:
    with pytest.raises(ValueError, match="gan, vae, flow"):
        baseline(Family.DIFFUSION, toy_dataset(40, 0), classes=2, target=1000, seed=0, batch_size=8)


@pytest.mark.parametrize("made", [Family.GAN], indirect=True)
def test_the_network_that_draws_is_the_player_model(made: Contender) -> None:
    assert isinstance(made.task.players()["model"], Generator)
