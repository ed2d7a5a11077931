from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unfog.diffusion.parameterization import Eps, Parameterization, Score
from unfog.diffusion.schedule import Schedule
from unfog.diffusion.weighting import Weight

T = torch.tensor([1e-6, 1e-3, 0.1, 0.4, 0.7, 0.97, 0.999], dtype=torch.float64)


def change(quantity: Parameterization, alpha: Tensor, sigma: Tensor, d_x0: Tensor) -> Tensor:
    """Return by how much a quantity moves when the estimate of x0 moves, at a fixed x_t."""
    k_x, k_e = quantity.target_coefficients(alpha, sigma)
    return k_x * d_x0 - k_e * alpha / sigma * d_x0


def test_the_weighted_error_is_that_of_the_printed_quantity(
    weight: Weight, parameterization: Parameterization, all_of: Callable[[type], list[Any]]
) -> None:
    for schedule in all_of(Schedule):
        alpha, sigma = schedule.alpha(T), schedule.sigma(T)
        # The network errs by 0.3; its estimate of x0 moves accordingly, and with it any other quantity.
        d_own = torch.full_like(T, 0.3)
        d_x0 = parameterization.solve(alpha, sigma).x0_out * d_own
        quantity = weight.quantity or parameterization
        printed = weight.log_weight(2 * (alpha.log() - sigma.log())).exp()
        d_quantity = change(quantity, alpha, sigma, d_x0)
        own = weight.on(parameterization, alpha, sigma) * d_own**2
        # log-SNRs reach 40 on these times: their rounding, 40 eps = 1e-14, is the relative error of a weight.
        torch.testing.assert_close(own, printed * d_quantity**2, rtol=1e-12, atol=0)


def test_the_weight_is_positive_and_finite_inside(weight: Weight, parameterization: Parameterization) -> None:
    log_snr = torch.linspace(-20, 20, 81, dtype=torch.float64)
    alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    value = weight.on(parameterization, alpha, sigma)
    assert value.isfinite().all()
    assert (value > 0).all()


def test_a_level_without_signal_has_a_finite_weight(weight: Weight, all_of: Callable[[type], list[Any]]) -> None:
    # The last level of a table with zero terminal SNR, where predictions of noise are refused.
    zero, one = torch.tensor([0.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    for parameterization in all_of(Parameterization):
        if not isinstance(parameterization, (Eps, Score)):
            assert weight.on(parameterization, zero, one).isfinite().all()
