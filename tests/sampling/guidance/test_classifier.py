import math

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion import analytic
from unfog.diffusion.parameterization import EDM
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, Schedule, VarianceExploding, VariancePreserving, linear
from unfog.sampling.gaussian import DDPM, Variance
from unfog.sampling.guidance.bounds import Bounded, Clip
from unfog.sampling.guidance.classifier import ClassifierGuided, NetworkClassifier, NoisyClassifier
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.guidance.gradient import NOISIEST

MEANS = torch.tensor([[-1.0, 0.2], [0.8, 0.5]], dtype=torch.float64)
VARIANCES = torch.tensor([[0.3, 0.1], [0.2, 0.4]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
X_T = Rng.of(3, 3).normal((2,), Purpose.SCRATCH).double()
LABEL = torch.tensor([0, 1, 1])
T = torch.tensor(0.4, dtype=torch.float64)
SCHEDULES = [VariancePreserving(), Cosine(), VarianceExploding(10.0)]


class Exact(NoisyClassifier):
    """The posterior of the component."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.process, self.classes = Gaussian(schedule), 2
        self.mixture = mixture(schedule)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.mixture.log_posterior(x_t, t)


def mixture(schedule: Schedule) -> analytic.Analytic:
    return analytic.mixture(Gaussian(schedule), MEANS, VARIANCES, WEIGHTS)


def guided(schedule: Schedule, scale: float) -> ClassifierGuided:
    return ClassifierGuided(mixture(schedule), Exact(schedule), LABEL, scale)


def gradient(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """That of the log-probability of the labels, by differences of exact densities."""
    point, model = x.clone().requires_grad_(), mixture(schedule)
    log_p = model.log_density(point, t, {"label": LABEL}) - model.log_density(point, t)
    return torch.autograd.grad(log_p.sum(), point)[0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_exact_classifier_is_bayes_rule(schedule: Schedule, t: float) -> None:
    time, model = torch.tensor(t, dtype=torch.float64), mixture(schedule)
    expected = torch.stack(
        [model.log_density(X_T, time, {"label": torch.full((3,), k)}) - model.log_density(X_T, time) for k in range(2)],
        dim=1,
    )
    torch.testing.assert_close(Exact(schedule)(X_T, time), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.0, 3.0])
def test_it_follows_the_density_times_the_posterior_to_a_power(schedule: Schedule, t: float, scale: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.scales(time)
    point, model = X_T.clone().requires_grad_(), mixture(schedule)
    log_p = Exact(schedule)(point, time).gather(1, LABEL[:, None])[:, 0]
    (expected,) = torch.autograd.grad((model.log_density(point, time) + scale * log_p).sum(), point)
    found = (alpha * guided(schedule, scale)(X_T, time).x0 - X_T) / sigma**2
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_with_the_exact_classifier_it_is_classifier_free_guidance(scale: float) -> None:
    free = ClassifierFree(mixture(SCHEDULES[0]), scale, {"label": torch.full((3,), 2)})
    found = guided(SCHEDULES[0], scale)(X_T, T).x0
    torch.testing.assert_close(found, free(X_T, T, {"label": LABEL}).x0, rtol=0, atol=1e-10)


def test_in_noise_it_is_the_published_change() -> None:
    # Dhariwal, Nichol 2021, algorithm 2: eps - sqrt(1 - abar) s grad log p.
    schedule = SCHEDULES[0]
    alpha, sigma = schedule.scales(T)
    eps = [(X_T - alpha * guided(schedule, s)(X_T, T).x0) / sigma for s in (0.0, 2.0)]
    expected = eps[0] - sigma * 2.0 * gradient(schedule, X_T, T)
    torch.testing.assert_close(eps[1], expected, rtol=0, atol=1e-12)


def test_the_mean_of_a_ddpm_step_moves_by_its_variance_times_the_gradient() -> None:
    # Algorithm 1 has mu + s Sigma g with Sigma = beta. DDPM's own mean, (x_t - beta / sigma_t eps) / sqrt(1 - beta),
    # with the eps of algorithm 2 moves by s beta g / sqrt(1 - beta): the same but for a factor near 1.
    schedule, scale, level = linear(), 2.0, 600
    t, s = (schedule.time_of(torch.tensor(float(k), dtype=torch.float64)) for k in (level, level - 1))
    times = torch.stack([t, s])
    (row,) = DDPM(Variance.BETA).table(schedule, times)
    (move,) = row.moves
    x0 = [guided(schedule, w)(X_T, t).x0 for w in (0.0, scale)]
    shift = move.x0[0] * (x0[1] - x0[0])
    beta = schedule.betas()[level].item()
    assert move.noise**2 == pytest.approx(beta, rel=1e-9)
    expected = scale * beta * gradient(schedule, X_T, t) / math.sqrt(1 - beta)
    torch.testing.assert_close(shift, expected, rtol=1e-9, atol=1e-12)


def test_bounds_come_after_guidance() -> None:
    strong = guided(SCHEDULES[0], 20.0)
    raw = strong(X_T, T).x0
    assert raw.abs().max() > 1.5
    assert torch.equal(Bounded(strong, Clip())(X_T, T).x0, raw.clamp(-1, 1))


@pytest.mark.parametrize("level", [0.9 * NOISIEST, 1.1 * NOISIEST])
def test_where_no_signal_is_left_the_estimate_stays(level: float) -> None:
    schedule = Cosine()
    t = schedule.time(torch.tensor(-2 * math.log(level), dtype=torch.float64))
    moved = (guided(schedule, 1.0)(X_T, t).x0 - mixture(schedule)(X_T, t).x0).abs().max()
    # An exact gradient moves the mean of all data to that of the class, here by about 1.
    assert moved > 0.3 if level < NOISIEST else moved == 0


def test_an_example_with_noise_and_one_without_signal_stand_in_one_batch() -> None:
    t = torch.tensor([0.4, 1.0, 0.0], dtype=torch.float64)
    whole = guided(Cosine(), 1.0)(X_T, t).x0
    assert whole.isfinite().all()
    assert torch.equal(whole[1], mixture(Cosine())(X_T, t).x0[1])


def test_gradients_flow_through_guidance_where_they_are_wanted() -> None:
    x = X_T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: guided(SCHEDULES[0], 1.5)(x, T).x0, x)


class Network(nn.Module):
    def __init__(self, answers: int = 3) -> None:
        super().__init__()
        self.answers = answers
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.seen.append((x, c_noise))
        return (x * self.weight).sum(1, keepdim=True).expand(-1, self.answers)


def test_a_network_sees_data_in_its_dtype_and_levels_in_float32() -> None:
    network = Network()
    logits = NetworkClassifier(network, Gaussian(Cosine()), 3)(X_T, T)
    x, c_noise = network.seen[0]
    assert (x.dtype, c_noise.dtype, logits.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(x, X_T.bfloat16())
    assert torch.equal(c_noise, torch.full((3,), 400.0))


def test_a_parameterization_scales_what_the_network_sees() -> None:
    network, process = Network(), Gaussian(VarianceExploding(80.0))
    NetworkClassifier(network, process, 3, EDM(0.5))(X_T, T)
    sigma = process.schedule.sigma(T)
    x, c_noise = network.seen[0]
    torch.testing.assert_close(x, (X_T / (sigma**2 + 0.25).sqrt()).bfloat16())
    torch.testing.assert_close(c_noise, (sigma.log() / 4).float().expand(3))


def test_a_network_with_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected logits of shape \(3, 5\) from the network, got \(3, 3\)"):
        NetworkClassifier(Network(), Gaussian(Cosine()), 5)(X_T, T)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 2 classes, not 1"):
        NetworkClassifier(Network(1), Gaussian(Cosine()), 1)


def test_a_classifier_of_another_process_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a classifier of the denoiser's process"):
        ClassifierGuided(mixture(Cosine()), Exact(SCHEDULES[0]), LABEL, 1.0)


@pytest.mark.parametrize("label", [[0, 2, 1], [0, -1, 1]])
def test_labels_out_of_range_are_refused(label: list[int]) -> None:
    with pytest.raises(ValueError, match="expected labels from 0 to 1, not"):
        ClassifierGuided(mixture(Cosine()), Exact(Cosine()), torch.tensor(label), 1.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"expected a finite guidance scale, not {scale}"):
        guided(Cosine(), scale)
