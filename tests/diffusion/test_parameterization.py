import math

import pytest
import torch

from unfog.diffusion import analytic
from unfog.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, Score, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Tabulated, VarianceExploding, VariancePreserving

T = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)
X0_VALUE, EPS_VALUE = torch.tensor([[0.4], [-1.1]], dtype=torch.float64).expand(2, len(T))


@pytest.mark.parametrize(
    ("parameterization", "expected"),
    [
        (Eps(), lambda x0, eps, alpha, sigma: eps),
        (Score(), lambda x0, eps, alpha, sigma: -eps / sigma),
        (X0(), lambda x0, eps, alpha, sigma: x0),
        (V(), lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0),
        (Flow(), lambda x0, eps, alpha, sigma: eps - x0),
    ],
)
def test_the_target_is_what_its_name_says(parameterization: Parameterization, expected: object) -> None:
    assert callable(expected)
    schedule = VariancePreserving()
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    target = parameterization.target(X0_VALUE, EPS_VALUE, alpha, sigma)
    torch.testing.assert_close(target, expected(X0_VALUE, EPS_VALUE, alpha, sigma), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_has_the_coefficients_of_its_table_1(sigma_data: float) -> None:
    schedule = VarianceExploding()
    sigma, d = schedule.sigma(T), sigma_data
    solution = EDM(d).solve(schedule.alpha(T), sigma)
    c_noise = EDM(d).c_noise(schedule.network_time(T), schedule.log_snr(T))
    # Karras et al. 2022 (arXiv 2206.00364), table 1, column "ours".
    for found, wanted in (
        (solution.x0_skip, d**2 / (sigma**2 + d**2)),
        (solution.x0_out, sigma * d / (sigma**2 + d**2).sqrt()),
        (EDM(d).c_in(schedule.alpha(T), sigma), 1 / (sigma**2 + d**2).sqrt()),
        (c_noise, sigma.log() / 4),
    ):
        # A few roundings each.
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "schedule", [VarianceExploding(), RectifiedFlow(), VariancePreserving()], ids=["ve", "rf", "vp"]
)
def test_edm_has_inputs_and_targets_of_unit_variance(schedule: VarianceExploding) -> None:
    d = 0.7
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    k_x, k_e = EDM(d).target_coefficients(alpha, sigma)
    # x0 has variance d^2, eps has 1, and they are independent.
    one = torch.ones_like(T)
    torch.testing.assert_close(EDM(d).c_in(alpha, sigma) ** 2 * ((alpha * d) ** 2 + sigma**2), one)
    torch.testing.assert_close((k_x * d) ** 2 + k_e**2, one)
    # The target is what x_t does not say: uncorrelated with it, so no skip connection could do better.
    torch.testing.assert_close(k_x * alpha * d**2 + k_e * sigma, 0 * one, rtol=0, atol=1e-14)


def test_edm_tells_the_noise_level_with_a_clamp() -> None:
    schedule = Cosine()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    level = EDM().c_noise(schedule.network_time(ends), schedule.log_snr(ends))
    torch.testing.assert_close(level, torch.tensor([-1.0, 1.0], dtype=torch.float64) * math.log(1e4) / 4)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
def test_edm_needs_a_positive_deviation(sigma_data: float) -> None:
    with pytest.raises(ValueError, match=f"expected sigma_data above 0, not {sigma_data}"):
        EDM(sigma_data)


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    schedule = VariancePreserving()
    data = analytic.mixture(Gaussian(schedule), torch.tensor([[-1.0], [0.6]], dtype=torch.float64), 0.1)
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
    gradient = torch.autograd.grad(data.log_density(x_t, t).sum(), x_t)[0]
    x_t = x_t.detach()
    x0 = data(x_t, t).x0
    score = Score().target(x0, (x_t - alpha * x0) / sigma, alpha, sigma)
    torch.testing.assert_close(score, gradient, rtol=1e-12, atol=1e-12)


def test_at_the_clean_end_x0_is_the_state() -> None:
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for parameterization in (Eps(), Score(), V(), Flow(), EDM()):
        solution = parameterization.solve(one, zero)
        assert (solution.x0_skip, solution.x0_out) == (1, 0)
    assert (X0().solve(one, zero).x0_skip, X0().solve(one, zero).x0_out) == (0, 1)


def test_from_pure_noise_x0_is_still_found_by_predictions_that_contain_it() -> None:
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    x0, eps = torch.tensor([0.3, -0.8], dtype=torch.float64), torch.tensor([1.1, 0.2], dtype=torch.float64)
    for parameterization in (X0(), V(), Flow(), EDM()):
        solution = parameterization.solve(zero, one)
        found = solution.x0_skip * eps + solution.x0_out * parameterization.target(x0, eps, zero, one)
        torch.testing.assert_close(found, x0, rtol=0, atol=1e-15)


@pytest.mark.parametrize("parameterization", [Eps(), Score()])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Tabulated((0.9, 0.0))], ids=repr)
def test_a_prediction_of_noise_is_refused_where_no_signal_is_left(
    parameterization: Parameterization, schedule: Cosine
) -> None:
    with pytest.raises(ValueError, match=f"{type(schedule).__name__} has alpha_1 = 0.*predict V, X0, Flow or EDM"):
        parameterization.check(schedule)


def test_coefficients_follow_examples_and_frames() -> None:
    x0 = torch.arange(12, dtype=torch.float64).reshape(2, 3, 2)
    alpha, sigma = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = V().target(x0, -x0, alpha, sigma)
    assert torch.equal(target, -sigma[..., None] * x0 - alpha[..., None] * x0)
