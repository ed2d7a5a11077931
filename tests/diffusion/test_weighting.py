import math

import pytest
import torch

from unfog.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, Score, V
from unfog.diffusion.schedule import RectifiedFlow, VarianceExploding, VariancePreserving
from unfog.diffusion.weighting import P2, Constant, EDMWeight, MinSNR, Sigmoid, Uncertainty, Weight

T = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
VP = VariancePreserving()
ALPHA, SIGMA = VP.alpha(T), VP.sigma(T)
SNR = (ALPHA / SIGMA) ** 2
LOG_SNR = SNR.log()


@pytest.mark.parametrize(
    ("weight", "parameterization", "expected"),
    [
        # Hang et al. 2023 (arXiv 2303.09556) print min-SNR for x0, for eps and for v of a variance-preserving process.
        (MinSNR(5.0), X0(), SNR.clamp_max(5.0)),
        (MinSNR(5.0), Eps(), SNR.clamp_max(5.0) / SNR),
        (MinSNR(5.0), V(), SNR.clamp_max(5.0) / (SNR + 1)),
        # Ho, Jain, Abbeel 2020 (arXiv 2006.11239), eq. 14: no weight on eps, which is the SNR on x0.
        (Constant(Eps()), Eps(), torch.ones_like(SNR)),
        (Constant(Eps()), X0(), SNR),
        (Constant(Eps()), V(), ALPHA**2),
        # Salimans, Ho 2022 (arXiv 2202.00512), section 4: the loss on v is SNR + 1 on x0.
        (Constant(V()), X0(), SNR + 1),
        # Hoogeboom et al. 2024 (arXiv 2410.19324): sigmoid weighting on eps and, multiplied out, on x0.
        (Sigmoid(-1.5), Eps(), torch.sigmoid(-1.5 - LOG_SNR)),
        (Sigmoid(-1.5), X0(), math.exp(-1.5) * torch.sigmoid(LOG_SNR + 1.5)),
        (Sigmoid(0.0), V(), ALPHA**2 * SIGMA**2),
        # Song, Ermon 2019 (arXiv 1907.05600), section 4.2: denoising score matching, sigma^2 on the score.
        (Constant(Eps()), Score(), SIGMA**2),
        (Constant(Score()), Eps(), SIGMA**-2),
        # Choi et al. 2022 (arXiv 2204.00227), section 3: L_simple's weight over (k + SNR)^gamma.
        (P2(), Eps(), 1 / (1 + SNR)),
        (P2(0.3, 0.5), Eps(), (0.3 + SNR) ** -0.5),
        (P2(), V(), ALPHA**2 / (1 + SNR)),
        (P2(gamma=0.0), X0(), SNR),
        (Uncertainty(MinSNR(5.0)), V(), SNR.clamp_max(5.0) / (SNR + 1)),
        (Constant(), V(), torch.ones_like(SNR)),
        (Constant(), EDM(), torch.ones_like(SNR)),
    ],
)
def test_a_weight_is_the_published_one(
    weight: Weight, parameterization: Parameterization, expected: torch.Tensor
) -> None:
    # Logarithms of up to 9 cost as many roundings.
    torch.testing.assert_close(weight.on(parameterization, ALPHA, SIGMA), expected, rtol=1e-13, atol=0)


def test_the_edm_weight_is_that_of_its_table_1() -> None:
    schedule = VarianceExploding()
    sigma = schedule.sigma(T)
    # Karras et al. 2022 (arXiv 2206.00364), table 1: lambda(sigma).
    expected = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    torch.testing.assert_close(EDMWeight(0.5).on(X0(), schedule.alpha(T), sigma), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("schedule", [VarianceExploding(), VP, RectifiedFlow()], ids=["ve", "vp", "flow"])
def test_the_edm_weight_is_one_on_edms_own_prediction(schedule: VariancePreserving) -> None:
    weight = EDMWeight(0.7).on(EDM(0.7), schedule.alpha(T), schedule.sigma(T))
    torch.testing.assert_close(weight, torch.ones_like(T), rtol=1e-13, atol=0)


def test_weights_hold_where_squares_would_overflow() -> None:
    tiny = torch.tensor([1e-200], dtype=torch.float64)
    # SNR = 1e400 on x0, 1 on eps: only logarithms get there.
    assert Constant(Eps()).on(Eps(), torch.ones_like(tiny), tiny) == 1
    assert MinSNR().on(X0(), torch.ones_like(tiny), tiny).item() == pytest.approx(5.0, rel=1e-13)
    assert Constant(Flow()).on(V(), torch.ones_like(tiny), tiny).item() == pytest.approx(1.0, rel=1e-13)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: MinSNR(0.0), "gamma above 0"),
        (lambda: MinSNR(math.nan), "gamma above 0"),
        (lambda: EDMWeight(-0.5), "sigma_data above 0"),
        (lambda: P2(k=0.0), "k above 0"),
        (lambda: P2(gamma=-1.0), "gamma of at least 0"),
        (lambda: Uncertainty(features=0), "features of at least 1"),
        (lambda: Uncertainty(Uncertainty()), "a weight without an uncertainty of its own"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"expected {expected}"):
        make()
