import math

import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion import analytic
from unfog.diffusion.nn.encoder import Encoder, EncoderConfig
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, VariancePreserving
from unfog.diffusion.times import Importance, LogNormal, Stratified, Uniform
from unfog.sampling.guidance.classifier import ClassifierGuided
from unfog.tasks.noisy_classification import BANDS, NoisyClassification
from unfog.training.config import TrainConfig
from unfog.training.optim import OptimizerConfig
from unfog.training.trainer import Trainer

PROCESS = Gaussian(VariancePreserving())
MEANS = torch.tensor([[-1.0, 0.2], [0.8, 0.5]], dtype=torch.float64)
TRUTH = analytic.mixture(PROCESS, MEANS, 0.1)


class Posterior(nn.Module):
    """The exact network: the log-posterior of the component, from the time that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.gain * TRUTH.log_posterior(x, c_noise.double() / 1000.0)


def drawn(start: int, count: int) -> tuple[Batch, Rng]:
    rng = Rng.of(7, torch.arange(start, start + count))
    label = (rng.uniform((), Purpose.CONDITION) < 0.5).long()
    x0 = MEANS[label] + math.sqrt(0.1) * rng.normal((2,), Purpose.SCRATCH).double()
    return Batch({"x0": x0, "label": label}, rng.sample, rng.step.expand(count), rng.position), rng


def exact(**options: float) -> NoisyClassification:
    return NoisyClassification(Posterior(), 2, PROCESS, Stratified(Uniform()), **options)  # type: ignore[arg-type]


def along_the_line() -> tuple[Tensor, Tensor]:
    """Half the distance of the components' means and their deviation, ``(99,)`` each, at times that cover [0, 1]."""
    t = (torch.arange(99, dtype=torch.float64) + 0.5) / 99
    alpha, sigma = PROCESS.schedule.scales(t)
    return alpha * (MEANS[1] - MEANS[0]).norm() / 2, (alpha**2 * 0.1 + sigma**2).sqrt()


def test_the_loss_at_the_optimum_is_the_entropy_that_noise_leaves() -> None:
    batch, rng = drawn(0, 4000)
    # By quadrature over the line through both means, along which alone components differ, and over time.
    half, std = (value[:, None] for value in along_the_line())
    z = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    # Given the class at +half, the log-odds at half + std z.
    odds = 2 * half * (half + std * z) / std**2
    entropy = (density * torch.nn.functional.softplus(-odds)).sum(1).mean().item()
    # 4000 examples: the standard deviation of one is below 0.5.
    assert exact().loss(batch, "model", rng=rng).total.item() == pytest.approx(entropy, abs=0.025)


def test_the_optimum_has_no_slope() -> None:
    batch, rng = drawn(0, 4000)
    task = exact()
    task.loss(batch, "model", rng=rng).total.backward()
    gradient = task.classifier.network.gain.grad
    assert isinstance(gradient, Tensor)
    assert abs(gradient.item()) < 0.03


def test_answers_are_told_by_noise_level() -> None:
    batch, rng = drawn(0, 3000)
    parts = exact().loss(batch, "model", rng=rng).parts
    accuracies = [parts[f"accuracy_{band}"].item() for band in BANDS]
    half, std = along_the_line()
    expected = torch.special.ndtr(half / std).reshape(3, 33).mean(1).tolist()
    # 1000 examples a band: four standard errors.
    assert accuracies == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 1000))
    assert expected[0] - expected[2] > 0.3
    assert parts["accuracy"].item() == pytest.approx(sum(accuracies) / 3, abs=1e-12)
    assert not any(part.requires_grad for part in parts.values())


def test_bands_are_thirds_of_whatever_density_is_trained_on() -> None:
    batch, rng = drawn(0, 3000)
    times = LogNormal(-6.0, 0.1)  # hardly any noise, so that all are right
    parts = NoisyClassification(Posterior(), 2, PROCESS, Stratified(times)).loss(batch, "model", rng=rng).parts
    for band in BANDS:
        # A low-discrepancy sequence of 3000 puts a third into each to a few.
        assert parts[f"accuracy_{band}"].item() == pytest.approx(1.0, abs=0.01)


def test_what_is_told_of_examples_is_what_the_loss_is_the_mean_of() -> None:
    batch, rng = drawn(0, 16)
    told = exact().describe(batch, "model", rng=rng)
    assert torch.equal(told["loss"].mean(), exact().loss(batch, "model", rng=rng).total)
    assert torch.equal(told["log_snr"], PROCESS.schedule.log_snr(told["t"]))


def test_smoothing_spreads_the_target() -> None:
    batch, rng = drawn(0, 64)
    told = exact().describe(batch, "model", rng=rng)["t"]
    noise = PROCESS.noise_like(batch.values["x0"], rng=rng)
    log_p = TRUTH.log_posterior(PROCESS.add_noise(batch.values["x0"], noise, told), told)
    right = log_p.gather(1, batch.values["label"][:, None])[:, 0]
    expected = -(0.8 * right + 0.2 * log_p.mean(1)).mean()
    found = exact(label_smoothing=0.2).loss(batch, "model", rng=rng).total
    # The network was told the time in float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_augmentation_comes_before_the_noise() -> None:
    batch, rng = drawn(0, 8)

    def mirrored(x0: Tensor, keys: Rng) -> Tensor:
        assert len(keys) == 8
        return -x0

    turned = Batch({**batch.values, "x0": -batch.values["x0"]}, *batch[1:])
    augmented = NoisyClassification(Posterior(), 2, PROCESS, Stratified(Uniform()), augment=mirrored)
    found = augmented.loss(batch, "model", rng=rng).total
    assert torch.equal(found, exact().loss(turned, "model", rng=rng).total)


class Pictures:
    """8x8 pictures, bright on the left or on the right, with a little noise."""

    def take(self, start: int, count: int) -> Batch:
        rng = Rng.of(3, torch.arange(start, start + count))
        label = (rng.uniform((), Purpose.CONDITION) < 0.5).long()
        x0 = 0.1 * rng.normal((1, 8, 8), Purpose.SCRATCH)
        x0[..., :4] += torch.where(label == 0, 0.7, -0.7)[:, None, None, None]
        x0[..., 4:] += torch.where(label == 1, 0.7, -0.7)[:, None, None, None]
        return Batch({"x0": x0, "label": label}, rng.sample, rng.step.expand(count), rng.position)


def test_an_encoder_learns_to_see_through_noise_and_guides() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(1, 2, (8, 8), widths=(8, 16), blocks=(1, 1), head_dim=8, groups=4)
    process = Gaussian(Cosine())
    task = NoisyClassification(Encoder(config), 2, process, Stratified(Uniform()))
    trainer = Trainer(task, Pictures(), TrainConfig(16, 32, seed=5, ema=(), optimizer=OptimizerConfig(lr=5e-3)))
    steps = [trainer.advance() for _ in range(16)]
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-5)  # a fresh encoder knows nothing
    assert steps[-1].loss < 0.4
    classifier = task.classifier.eval()
    # Guidance by what was learned moves estimates to the class that is asked for, here the wrong one.
    values = Pictures().take(100, 8).values
    plain = analytic.gaussian(process, torch.zeros(1, 8, 8), 0.5)
    label = 1 - values["label"]
    x_t = process.add_noise(values["x0"], process.noise_like(values["x0"], rng=Rng.of(0, 8)), torch.full((8,), 0.6))
    t = torch.tensor(0.6)
    with torch.inference_mode():
        moved = ClassifierGuided(plain, classifier, label, 1.0)(x_t, t).x0 - plain(x_t, t).x0
    towards = moved[..., 4:].mean((1, 2, 3)) - moved[..., :4].mean((1, 2, 3))
    assert (towards * torch.where(label == 1, 1.0, -1.0)).mean() > 0.02


def test_a_batch_without_labels_is_refused() -> None:
    batch, rng = drawn(0, 2)
    del batch.values["label"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"expected a batch with labels to classify, got \['x0'\]"):
        exact().loss(batch, "model", rng=rng)


def test_another_player_is_refused() -> None:
    batch, rng = drawn(0, 2)
    with pytest.raises(ValueError, match="expected the player 'model' of classification, got 'other'"):
        exact().loss(batch, "other", rng=rng)


@pytest.mark.parametrize("smoothing", [1.0, -0.1])
def test_a_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"expected label_smoothing in \[0, 1\)"):
        exact(label_smoothing=smoothing)


def test_times_that_want_a_history_are_refused() -> None:
    with pytest.raises(ValueError, match="expected times without a history of losses"):
        NoisyClassification(Posterior(), 2, PROCESS, Importance(Uniform()))
