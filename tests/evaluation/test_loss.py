import json
import statistics

import pytest
import torch
from torch import nn

from unfog.data.batch import Batch
from unfog.data.dataset import DataInfo, Field, Report
from unfog.diffusion.analytic import gaussian
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import EDM, X0, Eps, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import (
    CleanEnd,
    Cosine,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    linear,
    scaled_linear,
)
from unfog.diffusion.times import LogNormal, Uniform
from unfog.diffusion.weighting import Constant, EDMWeight, MinSNR
from unfog.evaluation.loss import (
    ExpectedLoss,
    LossCurve,
    chosen_examples,
    evaluating,
    expected_loss,
    loss_by_level,
    noise_levels,
)
from unfog.sampling.conditioning.conditioner import Label, Unconditional
from unfog.tasks.denoising import Denoising

MEAN, VARIANCE = 0.3, 0.2
SCHEDULES = [
    VariancePreserving(),
    Cosine(),
    RectifiedFlow(),
    VarianceExploding(),
    linear(),
    scaled_linear(clean=CleanEnd.FIRST_LEVEL),
]


class GaussianData:
    """Examples of N(MEAN, VARIANCE), whose best denoiser is known."""

    def __init__(self, count, name="gaussian"):
        self.x0 = MEAN + VARIANCE**0.5 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        fields = {"x0": Field((1, 4, 4), torch.float32)}
        self.info = DataInfo(name, count, fields, None, "", Report(count))

    def __len__(self):
        return len(self.x0)

    def gather(self, ids):
        return {"x0": self.x0[ids], "label": torch.as_tensor(ids) % 3}


class Exact(nn.Module):
    """Predicts what the best denoiser of the data implies; told 1000 t, as networks are."""

    def __init__(self, process, parameterization):
        super().__init__()
        shape = (1, 4, 4)
        self.denoiser = gaussian(process, torch.full(shape, MEAN, dtype=torch.float64), VARIANCE)
        self.process, self.parameterization = process, parameterization

    def forward(self, x, c_noise):
        t = c_noise.double() / 1000
        scales = self.process.schedule.alpha(t), self.process.schedule.sigma(t)
        solution = self.parameterization.solve(*scales)
        skip, out = (c[:, None, None, None] for c in (solution.x0_skip, solution.x0_out))
        x0 = self.denoiser(x.double(), t).x0
        return ((x0 - skip * x.double()) / out).to(x)


class Zero(nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros_like(x)


def task_of(network, schedule, parameterization, times=None, weight=None):
    denoiser = NetworkDenoiser(network, Gaussian(schedule), parameterization)
    return Denoising(denoiser, Unconditional(), times or Uniform(), weight or Constant())


def exact_task(parameterization=None, weight=None):
    schedule = Cosine()
    parameterization = parameterization or V()
    return task_of(Exact(Gaussian(schedule), parameterization), schedule, parameterization, weight=weight)


def irreducible(schedule, t):
    """The variance of x0 given x_t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)


def test_the_exact_network_has_the_irreducible_error_at_every_level():
    curve = loss_by_level(exact_task(), GaussianData(400))
    truth = irreducible(Cosine(), torch.tensor(curve.times, dtype=torch.float64))
    error = torch.tensor(curve.x0.errors, dtype=torch.float64)
    # Four standard errors, at all levels at once: they share their noise.
    assert ((torch.tensor(curve.x0.values, dtype=torch.float64) - truth).abs() < 4 * error).all()


def test_the_expected_loss_of_the_exact_network_is_the_irreducible_one():
    found = expected_loss(exact_task(X0()), GaussianData(400), draws=8).network
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    # The interval is of 1.96 standard errors, and wider than the truth since the times are even.
    assert abs(found.value - float(irreducible(Cosine(), t).mean())) < 2 * (found.high - found.value)


def test_the_expected_loss_is_weighted():
    found = expected_loss(exact_task(X0(), MinSNR(5.0)), GaussianData(400), draws=8).network
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    weight = Cosine().log_snr(t).exp().clamp_max(5.0)
    assert abs(found.value - float((weight * irreducible(Cosine(), t)).mean())) < 2 * (found.high - found.value)


def test_times_that_cover_the_density_evenly_bring_seeds_close_together():
    found = [expected_loss(exact_task(X0()), GaussianData(100), draws=1, seed=k).network for k in range(40)]
    spread = statistics.stdev(score.value for score in found)
    independent = statistics.mean((score.high - score.value) / 1.96 for score in found)
    # The standard error takes times as independent; 40 seeds give a spread to about 11 %.
    assert spread < 0.65 * independent


def test_the_error_of_x0_does_not_depend_on_what_the_network_predicts():
    data = GaussianData(32)
    curves = [loss_by_level(exact_task(p), data, times=torch.linspace(0.05, 0.95, 5)) for p in (V(), X0())]
    # float32 predictions are divided by sigma or alpha of at least 0.07.
    assert curves[0].x0.values == pytest.approx(curves[1].x0.values, rel=1e-4)


def test_a_network_that_answers_zero_has_exactly_the_error_of_the_baseline():
    task = task_of(Zero(), VariancePreserving(), Eps())
    curve, expected = loss_by_level(task, GaussianData(20)), expected_loss(task, GaussianData(20))
    assert curve.prediction == curve.zero
    assert (expected.network.value, expected.network.low) == (expected.zero.value, expected.zero.low)


def test_the_noise_is_the_same_at_every_level():
    zero = loss_by_level(task_of(Zero(), VariancePreserving(), Eps()), GaussianData(20)).zero.values
    assert len(set(zero)) == 1


def test_the_batch_size_changes_nothing(toy_pipeline, toy_dataset):
    task, data = toy_pipeline()[1], toy_dataset(30, 0)
    assert loss_by_level(task, data, batch_size=7) == loss_by_level(task, data, batch_size=30)
    assert expected_loss(task, data, batch_size=7) == expected_loss(task, data, batch_size=30)


def test_another_seed_gives_other_noise(toy_pipeline, toy_dataset):
    task, data = toy_pipeline()[1], toy_dataset(30, 0)
    assert expected_loss(task, data, seed=1) != expected_loss(task, data, seed=2)


def test_conditions_are_given_even_if_training_drops_them_all(toy_dataset):
    class ToldLabel(nn.Module):
        def forward(self, x, c_noise, label):
            return label.to(x)[:, None, None, None].expand_as(x)

    denoiser = NetworkDenoiser(ToldLabel(), Gaussian(Cosine()), V())
    curves = [
        loss_by_level(Denoising(denoiser, Label(2, dropout), Uniform(), Constant()), toy_dataset(30, 0))
        for dropout in (0.0, 1.0)
    ]
    assert curves[0] == curves[1]


def test_dropout_is_off_while_measuring_and_the_modes_come_back(toy_pipeline, toy_dataset):
    _, task = toy_pipeline()
    task.train()
    task.denoiser.network.dropout.eval()
    modes = [part.training for part in task.modules()]
    assert loss_by_level(task, toy_dataset(30, 0)) == loss_by_level(task.eval(), toy_dataset(30, 0))
    task.train()
    task.denoiser.network.dropout.eval()
    expected_loss(task, toy_dataset(30, 0))
    assert [part.training for part in task.modules()] == modes


def test_the_modes_come_back_after_an_error():
    network = nn.Sequential(nn.Dropout())
    with pytest.raises(ZeroDivisionError), evaluating(network):
        1 / network[0].training  # evaluation mode: 0
    assert network[0].training


def test_no_graph_is_kept(toy_pipeline, toy_dataset):
    _, task = toy_pipeline()
    with evaluating(task):
        batch = toy_dataset(4, 0).gather(torch.arange(4))
        assert not task.denoiser.predict(batch["x0"], torch.full((4,), 0.5), {"label": batch["label"]}).requires_grad


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_levels_are_even_in_log_snr_and_stay_within_reach(schedule):
    log_snr = schedule.log_snr(noise_levels(schedule, 9))
    steps = log_snr.diff()
    assert float(log_snr.abs().max()) < 10 + 1e-6
    # times() is inverse to log_snr() up to the rounding of t near 1, where log-SNR is steep.
    assert steps.tolist() == pytest.approx([float(steps.mean())] * 8, rel=1e-4)


def test_the_weight_of_a_level_is_that_of_the_training_loss():
    task = task_of(Zero(), VarianceExploding(), EDM(), LogNormal(), EDMWeight())
    # Karras et al. 2022: their weight makes that of the network's own error 1 everywhere.
    assert loss_by_level(task, GaussianData(5)).weight == pytest.approx([1.0] * 24, rel=1e-5)


def test_the_expected_loss_is_what_the_task_minimises():
    task, data = exact_task(), GaussianData(300)
    found = expected_loss(task, data, count=300, draws=8).network
    batch = Batch(data.gather(torch.arange(300)), *([torch.arange(300)] * 3))
    losses = [float(task.loss(batch, "model", rng=Rng.of(k, 300)).total) for k in range(20)]
    # The mean of 20 batches of other noise has a spread of its own, about that of the estimate over 3.
    assert abs(found.value - sum(losses) / 20) < 2 * (found.high - found.value)


def test_the_examples_are_a_random_choice_without_repetition():
    chosen = chosen_examples(GaussianData(100), 30, seed=0).tolist()
    assert len(set(chosen)) == 30
    assert chosen != sorted(chosen)
    assert max(chosen) > 30


def test_a_small_set_is_used_as_a_whole():
    assert loss_by_level(task_of(Zero(), Cosine(), V()), GaussianData(6)).count == 6


def test_an_only_example_is_measured_over_several_noises():
    task, data = task_of(Zero(), Cosine(), X0()), GaussianData(1)
    curve = loss_by_level(task, data, times=torch.tensor([0.5]))
    # Against a network that predicts x0 as 0, the error is that of the example whatever the noise.
    wanted = data.x0.double().square().mean().item()
    assert curve.prediction.values == pytest.approx((wanted,), rel=1e-6)
    assert curve.prediction.errors == pytest.approx((0.0,), abs=1e-7)
    noisy = loss_by_level(task_of(Zero(), VariancePreserving(), Eps()), data, times=torch.tensor([0.5]))
    # Mean squares of N(0, 1) over 16 pixels have the spread sqrt(2 / 16), their mean over 8 noises 0.125; from 8 draws
    # the spread is estimated within a factor of 3 but once in a hundred times.
    assert 0.125 / 3 < noisy.prediction.errors[0] < 0.125 * 3
    assert curve.count == noisy.count == 1


def test_the_loss_of_an_only_example_has_the_interval_of_its_draws():
    task, data = task_of(Zero(), Cosine(), V()), GaussianData(1)
    found = expected_loss(task, data).network
    assert found.count == 1
    assert "the only example of gaussian at 8 training times" in found.note
    assert found.low < found.value < found.high
    with pytest.raises(ValueError, match="two values or more"):
        expected_loss(task, data, draws=1)


def test_too_few_examples_are_not_asked_for():
    with pytest.raises(ValueError, match="a count of at least 2"):
        loss_by_level(task_of(Zero(), Cosine(), V()), GaussianData(6), count=1)


def test_the_numbers_survive_json():
    task, data = task_of(Zero(), Cosine(), V()), GaussianData(6)
    curve, expected = loss_by_level(task, data), expected_loss(task, data)
    assert LossCurve.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve
    assert ExpectedLoss.from_dict(json.loads(json.dumps(expected.to_dict()))) == expected
