"""Each term of the bound against closed forms: divergences of Gaussians, and Gaussian data with the exact denoiser."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from unfog.diffusion import analytic
from unfog.diffusion.bound import (
    HALF_BIN,
    decoder_term,
    prior_term,
    rate_term,
    require_levels,
    step_log_variance,
    step_term,
)
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine, Schedule, VarianceExploding, linear

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
MEAN, VARIANCE = 0.3, 0.2
SCHEDULES = [Cosine(), linear(), VarianceExploding(5.0)]


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def squared_error(schedule: Schedule, t: Tensor) -> Tensor:
    """The variance of x0 given x_t, of data N(MEAN, VARIANCE)."""
    alpha, sigma = schedule.scales(t)
    return VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)


def error_of_the_exact_denoiser(schedule: Schedule, t: Tensor) -> Tensor:
    """x0 - x0_hat at the four corners where means of squares over the data and the noise are exact, ``(4, 1)``."""
    denoiser = analytic.gaussian(Gaussian(schedule), times(MEAN), VARIANCE)
    corners = torch.cartesian_prod(times(-1, 1), times(-1, 1))
    x0, noise = MEAN + math.sqrt(VARIANCE) * corners[:, :1], corners[:, 1:]
    return x0 - denoiser(Gaussian(schedule).add_noise(x0, noise, t), t).x0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize(("s", "t"), [(0.05, 0.06), (0.3, 0.5), (0.5, 0.501), (0.9, 0.98)])
def test_a_step_on_gaussian_data_is_the_closed_form(schedule: Schedule, s: float, t: float) -> None:
    earlier, later = times(s).squeeze(), times(t).squeeze()
    term = step_term(Gaussian(schedule), earlier, later, error_of_the_exact_denoiser(schedule, later)).mean()
    fall = schedule.log_snr(earlier).exp() - schedule.log_snr(later).exp()
    # The fall of the SNR over a step of 0.001 keeps 12 digits.
    torch.testing.assert_close(term, 0.5 * fall * squared_error(schedule, later), rtol=1e-10, atol=0)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_a_step_is_the_divergence_of_its_two_gaussians(fraction: float) -> None:
    process, s, t = Gaussian(Cosine()), times(0.4).squeeze(), times(0.6).squeeze()
    x_t, x0, guess = times(0.7, -1.2), times(0.2, 0.9), times(-0.5, 1.0)
    posterior = process.posterior(s, t)
    reverse_std = (0.5 * step_log_variance(process, s, t, fraction)).exp()
    true = Normal(posterior.x_t_scale * x_t + posterior.x0_scale * x0, posterior.std)
    reverse = Normal(posterior.x_t_scale * x_t + posterior.x0_scale * guess, reverse_std)
    found = step_term(process, s, t, (x0 - guess)[None], fraction)[0]
    torch.testing.assert_close(found, kl_divergence(true, reverse), rtol=1e-12, atol=0)


def test_the_variance_of_a_step_lies_between_posterior_and_forward() -> None:
    process, s, t = Gaussian(linear()), times(0.399).squeeze(), times(0.4).squeeze()
    low, middle, high = (step_log_variance(process, s, t, v) for v in (0.0, 0.5, 1.0))
    betas = linear().betas()
    torch.testing.assert_close(high.exp(), betas[399], rtol=1e-9, atol=0)
    torch.testing.assert_close(low, 2 * process.posterior(s, t).std.log())
    torch.testing.assert_close(middle, 0.5 * (low + high))


def test_a_learned_variance_is_one_for_each_element() -> None:
    process, s, t = Gaussian(Cosine()), times(0.2, 0.6), times(0.3, 0.7)
    error, fraction = times(0.1, 0.2, 0.3, 0.4).reshape(2, 2), times(0.0, 1.0, 0.3, 0.8).reshape(2, 2)
    found = step_term(process, s, t, error, fraction)
    for b in range(2):
        for k in range(2):
            alone = step_term(process, s[b], t[b], error[b, k : k + 1], fraction[b, k].item())
            torch.testing.assert_close(found[b, k], alone[0], rtol=1e-13, atol=0)


def test_steps_of_a_constant_error_add_up_to_the_fall_of_the_snr() -> None:
    nodes = torch.linspace(0.1, 1.0, 400, dtype=torch.float64)
    error = torch.full((399, 1), 0.3, dtype=torch.float64)
    total = step_term(Gaussian(Cosine()), nodes[:-1], nodes[1:], error).sum()
    # The SNR at 0.1 is 39.9, that at 1 exactly 0.
    torch.testing.assert_close(total, 0.5 * 0.09 * Cosine().log_snr(nodes[0]).exp(), rtol=1e-11, atol=0)


def test_a_short_step_is_the_rate_of_continuous_time() -> None:
    schedule, t = VarianceExploding(), times(0.01).squeeze()
    s = schedule.time(schedule.log_snr(t) + 1e-5)
    error = times(0.2)[None]
    step = step_term(Gaussian(schedule), s, t, error) / (schedule.log_snr(s) - schedule.log_snr(t))
    # SNR_s - SNR_t over the step is SNR_t (1 + h / 2).
    torch.testing.assert_close(step, rate_term(error, schedule.log_snr(t)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_rate_on_gaussian_data_integrates_to_the_closed_form(schedule: Schedule) -> None:
    low, high = -3.0, 6.0
    nodes = torch.linspace(low, high, 601, dtype=torch.float64)
    t = schedule.time(nodes)
    rates = torch.stack([rate_term(error_of_the_exact_denoiser(schedule, u), schedule.log_snr(u)).mean() for u in t])
    wanted = 0.5 * math.log((1 + VARIANCE * math.exp(high)) / (1 + VARIANCE * math.exp(low)))
    # The trapezoidal rule with steps of 0.015: off by 2e-5 of the change of the slope, which is below 0.1, over 2.
    assert torch.trapezoid(rates, nodes).item() == pytest.approx(wanted, rel=1e-6)


def test_the_prior_term_of_gaussian_data_is_the_closed_form() -> None:
    schedule, corners = linear(), times(-1, 1)[:, None]
    log_snr = schedule.log_snr(times(1.0).squeeze())
    x0 = MEAN + math.sqrt(VARIANCE) * corners
    torch.testing.assert_close(prior_term(x0, log_snr).mean(), 0.5 * log_snr.exp() * (MEAN**2 + VARIANCE))


def test_the_prior_term_is_the_divergence_from_what_sampling_begins_with() -> None:
    schedule, one, x0 = linear(), times(1.0).squeeze(), times(0.8, -0.3)
    alpha, sigma = schedule.scales(one)
    wanted = kl_divergence(Normal(alpha * x0, sigma), Normal(torch.zeros_like(x0), sigma))
    # The divergence is a difference of ones, of 1e-5.
    torch.testing.assert_close(prior_term(x0[None], schedule.log_snr(one))[0], wanted, rtol=1e-9, atol=1e-15)


def test_pure_noise_leaves_no_prior_term() -> None:
    assert prior_term(times(0.8)[None], times(-math.inf).squeeze()).item() == 0.0


@pytest.mark.parametrize("std", [1e-3, HALF_BIN, 0.05, 3.0])
@pytest.mark.parametrize("mean", [-1.4, -1.0, 0.123, 0.9999, 2.0])
def test_the_decoder_shares_one_out_over_the_levels(mean: float, std: float) -> None:
    terms = decoder_term(LEVELS[None], torch.full((1, 256), mean), times(2 * math.log(std)))
    assert terms.isfinite().all()
    assert torch.exp(-terms).sum().item() == pytest.approx(1.0, rel=1e-12)


def test_the_decoder_integrates_a_gaussian_over_each_bin() -> None:
    inner = LEVELS[100:150]
    normal = Normal(times(0.05), times(0.2))
    wanted = normal.cdf(inner + 1 / 255) - normal.cdf(inner - 1 / 255)
    mean = torch.full((1, 50), 0.05, dtype=torch.float64)
    found = torch.exp(-decoder_term(inner[None], mean, times(2 * math.log(0.2))))[0]
    # The difference of the two integrals keeps 12 digits.
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_the_decoder_is_symmetric_and_keeps_its_digits_far_from_its_mean() -> None:
    far = decoder_term(LEVELS[None, 50:206], torch.full((1, 156), 1.2), times(-8.0))
    mirrored = decoder_term(-LEVELS[None, 50:206], torch.full((1, 156), -1.2), times(-8.0))
    torch.testing.assert_close(far, mirrored, rtol=1e-12, atol=0)
    # Up to 100 deviations away: the logarithm of the density times the bin is right to 2 %, since the density changes
    # within a bin by a factor of e^(z h / s) with h / s = 0.2.
    z = (1.2 - LEVELS[50:60]) / math.exp(-4.0)
    rough = 0.5 * z**2 - z * HALF_BIN / math.exp(-4.0)
    torch.testing.assert_close(far[0, :10], rough, rtol=0.02, atol=0)


def test_the_decoder_has_finite_gradients_everywhere() -> None:
    mean = torch.full((1, 256), 0.4, dtype=torch.float64, requires_grad=True)
    log_variance = times(-9.0).requires_grad_()
    decoder_term(LEVELS[None], mean, log_variance).sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()


def test_data_of_eight_bits_are_taken_in_float32() -> None:
    require_levels(LEVELS.float())
    require_levels(torch.empty(0, 1))


@pytest.mark.parametrize("x0", [times(0.001), times(1.5), LEVELS + 1 / 127.5])
def test_other_data_are_refused(x0: Tensor) -> None:
    with pytest.raises(ValueError, match="expected 8-bit data"):
        require_levels(x0)
