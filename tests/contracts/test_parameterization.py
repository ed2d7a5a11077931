import pytest
import torch
from torch import Tensor

from unfog.diffusion.parameterization import Eps, Parameterization, Score
from unfog.diffusion.schedule import Schedule

EPS = torch.finfo(torch.float64).eps
TIMES = torch.tensor([0.0, 1e-9, 1e-6, 1e-3, 0.05, 0.3, 0.5, 0.8, 0.99, 1 - 1e-6, 1.0], dtype=torch.float64)


def scales(parameterization: Parameterization, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at the times that are legal: no score at sigma = 0, no noise at alpha = 0."""
    alpha, sigma = schedule.alpha(TIMES), schedule.sigma(TIMES)
    legal = torch.stack(parameterization.target_coefficients(alpha, sigma)).isfinite().all(0)
    if isinstance(parameterization, (Eps, Score)):
        legal &= alpha > 0
    assert legal.sum() >= len(TIMES) - 2
    return alpha[legal], sigma[legal]


def refused(parameterization: Parameterization, schedule: Schedule) -> bool:
    no_signal = schedule.alpha(torch.ones((), dtype=torch.float64)).item() == 0
    return no_signal and isinstance(parameterization, (Eps, Score))


def test_only_predictions_of_noise_are_refused_where_no_signal_is_left(
    parameterization: Parameterization, schedule: Schedule
) -> None:
    if refused(parameterization, schedule):
        with pytest.raises(ValueError, match=rf"{type(schedule).__name__} has alpha_1 = 0.*predict V, X0, Flow or EDM"):
            parameterization.check(schedule)
    else:
        parameterization.check(schedule)


def test_the_solution_inverts_the_system(parameterization: Parameterization, schedule: Schedule) -> None:
    alpha, sigma = scales(parameterization, schedule)
    k_x, k_e = parameterization.target_coefficients(alpha, sigma)
    x0_skip, x0_out, eps_skip, eps_out = parameterization.solve(alpha, sigma)
    # Each row is a sum of two products, good to the rounding of the larger one: where the system is ill-conditioned
    # (D small) the products are large.
    for skip, out, on_x0, on_eps, defined in (
        (x0_skip, x0_out, 1.0, 0.0, torch.ones_like(alpha, dtype=torch.bool)),
        # eps leaves no trace in x_t at sigma = 0: only a prediction that contains it can return it.
        (eps_skip, eps_out, 0.0, 1.0, (sigma > 0) | (k_e != 0)),
    ):
        for coefficient, k, wanted in ((alpha, k_x, on_x0), (sigma, k_e, on_eps)):
            got = skip * coefficient + out * k
            tolerance = 16 * EPS * (1 + (skip * coefficient).abs() + (out * k).abs())
            assert ((got - wanted).abs() <= tolerance)[defined].all()


def test_x0_and_eps_survive_the_round_trip(parameterization: Parameterization, schedule: Schedule) -> None:
    alpha, sigma = scales(parameterization, schedule)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(alpha), 5, generator=generator, dtype=torch.float64)
    x_t = alpha[:, None] * x0 + sigma[:, None] * eps
    target = parameterization.target(x0, eps, alpha, sigma)
    solution = parameterization.solve(alpha, sigma)
    determinant = parameterization.determinant(alpha, sigma).abs()
    k_x, k_e = (k.abs() for k in parameterization.target_coefficients(alpha, sigma))
    # Inputs of size 1 to 4 are rounded, and the inverse of a 2x2 system enlarges that by its entries over D.
    for truth, skip, out, size in (
        (x0, solution.x0_skip, solution.x0_out, k_e * (alpha + sigma) + sigma * (k_x + k_e)),
        (eps, solution.eps_skip, solution.eps_out, k_x * (alpha + sigma) + alpha * (k_x + k_e)),
    ):
        found = skip[:, None] * x_t + out[:, None] * target
        # Where D is 0 the prediction is x0 itself and x_t too: eps cannot be found.
        solvable = determinant > 0
        assert ((found - truth).abs().amax(1) <= 64 * EPS * (1 + size / determinant))[solvable].all()


def test_predictions_and_inputs_are_finite_over_all_times(
    parameterization: Parameterization, schedule: Schedule
) -> None:
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    level = parameterization.c_noise(schedule.network_time(t), schedule.log_snr(t))
    assert level.shape == t.shape
    assert level.isfinite().all()
    assert (level.diff() >= 0).all()
    assert parameterization.c_in(alpha, sigma).isfinite().all()
    if not refused(parameterization, schedule):
        solution = parameterization.solve(alpha, sigma)
        assert solution.x0_skip.isfinite().all()
        assert solution.x0_out.isfinite().all()


def test_the_determinant_is_the_change_of_the_target_at_a_fixed_x_t(
    parameterization: Parameterization, schedule: Schedule
) -> None:
    t = torch.tensor([1e-3, 0.2, 0.6, 0.9], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    # (x0, eps) + r (-sigma, alpha) leaves x_t as it is; the target of any parameterization moves by D r.
    x0, eps, r = torch.tensor([[0.3], [-1.2], [0.7]], dtype=torch.float64).expand(3, len(t))
    before = parameterization.target(x0, eps, alpha, sigma)
    after = parameterization.target(x0 - r * sigma, eps + r * alpha, alpha, sigma)
    k_x, k_e = parameterization.target_coefficients(alpha, sigma)
    # Both targets are rounded relative to their terms.
    tolerance = 16 * EPS * ((k_x.abs() + k_e.abs()) * 4)
    assert ((after - before - r * parameterization.determinant(alpha, sigma)).abs() <= tolerance).all()
