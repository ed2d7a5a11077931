"""The kernels of the Gaussian process on every schedule, against the algebra of Markov chains."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Schedule, Tabulated

EPS = torch.finfo(torch.float64).eps
TRIPLES = torch.tensor(
    [(0.0, 0.4, 0.9), (1e-6, 0.001, 0.5), (0.2, 0.2001, 0.2002), (0.3, 0.5, 0.7), (0.5, 0.999, 1.0), (0.98, 0.99, 1.0)],
    dtype=torch.float64,
)


def close(found: Tensor, wanted: Tensor, schedule: Schedule, *times: Tensor) -> bool:
    """Compare to the accuracy of a difference of log-SNRs, on which the kernels' variances rest."""
    levels = [schedule.log_snr(t).clamp(-100, 100) for t in times]
    gap = torch.stack([(a - b).abs() for a, b in pairwise(levels)]).amin(0)
    size = torch.stack([level.abs() for level in levels]).amax(0)
    tolerance = 32 * EPS * (1 + (1 + size) / gap)
    return bool(((found - wanted).abs() <= tolerance * wanted.abs() + 1e-300).all())


def test_kernels_compose(schedule: Schedule) -> None:
    process, (s, u, t) = Gaussian(schedule), TRIPLES.unbind(1)
    first, second, whole = process.kernel(s, u), process.kernel(u, t), process.kernel(s, t)
    assert close(second.scale * first.scale, whole.scale, schedule, s, u, t)
    assert close(second.scale**2 * first.std**2 + second.std**2, whole.std**2, schedule, s, u, t)


def test_a_kernel_carries_the_marginal_of_s_to_that_of_t(schedule: Schedule) -> None:
    process, (s, _, t) = Gaussian(schedule), TRIPLES.unbind(1)
    kernel = process.kernel(s, t)
    assert close(kernel.scale * schedule.alpha(s), schedule.alpha(t), schedule, s, t)
    assert close((kernel.scale * schedule.sigma(s)) ** 2 + kernel.std**2, schedule.sigma(t) ** 2, schedule, s, t)


def test_the_posterior_is_that_of_bayes_rule(schedule: Schedule) -> None:
    process, (_, s, t) = Gaussian(schedule), TRIPLES.unbind(1)
    kernel, posterior = process.kernel(s, t), process.posterior(s, t)
    # Prior N(alpha_s x0, sigma_s^2) on x_s, likelihood N(x_t; scale x_s, std^2): precisions add up.
    precision = schedule.sigma(s) ** -2 + (kernel.scale / kernel.std) ** 2
    assert close(posterior.std**2, 1 / precision, schedule, s, t)
    assert close(posterior.x_t_scale, kernel.scale / kernel.std**2 / precision, schedule, s, t)
    assert close(posterior.x0_scale, schedule.alpha(s) / schedule.sigma(s) ** 2 / precision, schedule, s, t)


def test_the_posterior_reverses_the_marginal(schedule: Schedule) -> None:
    process, (s, _, t) = Gaussian(schedule), TRIPLES.unbind(1)
    posterior = process.posterior(s, t)
    mean = posterior.x_t_scale * schedule.alpha(t) + posterior.x0_scale
    variance = (posterior.x_t_scale * schedule.sigma(t)) ** 2 + posterior.std**2
    assert close(mean, schedule.alpha(s), schedule, s, t)
    assert close(variance, schedule.sigma(s) ** 2, schedule, s, t)


def test_a_chain_of_a_thousand_steps_arrives_at_the_marginal(schedule: Schedule) -> None:
    times = torch.linspace(0, 1, 1001, dtype=torch.float64)
    kernel = Gaussian(schedule).kernel(times[:-1], times[1:])
    mean, variance = schedule.alpha(times[0]).item(), schedule.sigma(times[0]).item() ** 2
    for scale, std in zip(kernel.scale.tolist(), kernel.std.tolist(), strict=True):
        mean, variance = scale * mean, scale**2 * variance + std**2
    # A thousand roundings, each of relative size eps (|log-SNR| / its step), some 1e4 eps where steps are smallest.
    wanted = schedule.alpha(times[-1]).item(), schedule.sigma(times[-1]).item() ** 2
    assert abs(mean - wanted[0]) <= 1e-10 * wanted[0]
    assert abs(variance - wanted[1]) <= 1e-10 * wanted[1]


def test_noise_is_added_with_the_scales_of_the_schedule(schedule: Schedule) -> None:
    x0, noise = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    t = torch.tensor([0.3, 1.0], dtype=torch.float64)
    x_t = Gaussian(schedule).add_noise(x0, noise, t)
    assert torch.equal(x_t, schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * noise)


def test_tables_have_the_posterior_of_the_ddpm_paper(all_of: Callable[[type], list[Any]]) -> None:
    for schedule in all_of(Schedule):
        if not isinstance(schedule, Tabulated):
            continue
        # Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eqs. 2 and 7, written out for neighbouring levels.
        bar = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
        before, after = bar[:-1], bar[1:]
        beta = 1 - after / before
        levels = torch.arange(len(bar), dtype=torch.float64)
        s, t = schedule.time_of(levels[:-1]), schedule.time_of(levels[1:])
        process = Gaussian(schedule)
        kernel, posterior = process.kernel(s, t), process.posterior(s, t)
        # beta, a difference of numbers near 1, keeps twelve digits at 1e-4; interpolated logarithms cost some more.
        for found, wanted in (
            (kernel.scale, (1 - beta).sqrt()),
            (kernel.std**2, beta),
            (posterior.std**2, (1 - before) / (1 - after) * beta),
            (posterior.x0_scale, before.sqrt() * beta / (1 - after)),
            (posterior.x_t_scale, (1 - beta).sqrt() * (1 - before) / (1 - after)),
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-15)
