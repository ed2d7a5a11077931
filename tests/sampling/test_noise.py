import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import RectifiedFlow, VariancePreserving
from unfog.sampling.gaussian import DDIM, DDPM
from unfog.sampling.grid import Trailing
from unfog.sampling.noise import noises
from unfog.sampling.sampler import sample
from unfog.sampling.table import Move, Row, noise_weights, share, span_ends

SCHEDULE = VariancePreserving()
MANY = torch.zeros(20_000, 1, dtype=torch.float64)


def spans(*ends: tuple[float, float] | None) -> list[Row]:
    """Rows whose only content is the noise between half log-SNRs."""
    return [Row(1.0, (Move(0.0, (1.0,), 1.0, span=span),), 0.5) for span in ends]


def drawn(rows: list[Row]) -> list[Tensor]:
    return list(noises(rows, MANY, Rng.of(3, len(MANY))))


def covariance(a: Tensor, b: Tensor) -> float:
    return float((a * b).mean())


# Standard error of a mean of 20,000 products of unit normals: 0.007 to 0.01; four of them.
ROUGH = 0.04


def test_the_noise_of_steps_is_white() -> None:
    rows = DDPM().table(SCHEDULE, Trailing().times(SCHEDULE, 12))
    found = torch.stack(drawn(rows))[..., 0]
    assert len(found) == 11
    torch.testing.assert_close(found @ found.T / len(MANY), torch.eye(11, dtype=torch.float64), rtol=0, atol=ROUGH)
    assert found.mean(1).abs().max() < ROUGH


def test_two_steps_make_up_their_joint_step() -> None:
    halves, whole = drawn(spans((-1.0, 0.3), (0.3, 1.1))), drawn(spans((-1.0, 1.1)))
    part = share(-1.0, 0.3, 1.1)
    joined = math.sqrt(part) * halves[0] + math.sqrt(1 - part) * halves[1]
    # Both follow the halvings of the axis; they differ by what happens within the pieces, of which 64 make the axis.
    assert covariance(joined, whole[0]) > 0.95


def test_spans_that_overlap_share_their_noise_exactly() -> None:
    first, whole, second = drawn(spans((-0.5, 0.2), (-0.5, 1.5), (0.2, 1.5)))
    part = share(-0.5, 0.2, 1.5)
    torch.testing.assert_close(math.sqrt(part) * first + math.sqrt(1 - part) * second, whole, rtol=0, atol=1e-12)


def test_noise_without_a_span_is_shared_with_nothing() -> None:
    rows = spans((-1.0, 1.0), None, (1.0, 2.0), None)
    found = torch.stack(drawn(rows))[..., 0]
    torch.testing.assert_close(found @ found.T / len(MANY), torch.eye(4, dtype=torch.float64), rtol=0, atol=ROUGH)


def test_the_path_may_start_where_nothing_is_known() -> None:
    first, second = drawn(spans((-math.inf, -1.0), (-1.0, 0.0)))
    assert covariance(first, first) == pytest.approx(1.0, abs=ROUGH)
    assert covariance(first, second) == pytest.approx(0.0, abs=ROUGH)


def test_times_that_meet_a_halving_are_cut_once() -> None:
    # The middle of the axis in flow time is log-SNR 0.
    first, second = drawn(spans((-1.0, 0.0), (0.0, 1.0)))
    assert covariance(first, first) == pytest.approx(1.0, abs=ROUGH)
    assert covariance(first, second) == pytest.approx(0.0, abs=ROUGH)


def test_shares_of_a_span_sum_to_one() -> None:
    rows = spans((-2.0, 0.5), (-2.0, -1.0), (-1.0, 0.5))
    assert span_ends(rows) == [-2.0, -1.0, 0.5]
    weights = noise_weights(rows)
    assert [sum(weight**2 for weight in combination.values()) for combination in weights] == pytest.approx([1.0] * 3)
    assert [sorted(combination) for combination in weights] == [[0, 1], [0], [1]]


@pytest.mark.parametrize("schedule", [SCHEDULE, RectifiedFlow()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(0.5)], ids=repr)
def test_a_seed_gives_the_same_sample_at_20_and_40_steps(schedule: VariancePreserving, sampler: DDIM) -> None:
    # Two well separated modes: which one a sample falls into is its composition.
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    denoiser = analytic.mixture(Gaussian(schedule), means, 0.01)
    rng = Rng.of(0, 1000)
    x = denoiser.process.prior((1,), rng=rng, dtype=torch.float64)
    with torch.inference_mode():
        few, many = (
            sample(denoiser, sampler, Trailing().times(schedule, steps), x, rng=rng).sign() for steps in (20, 40)
        )
        other = sample(denoiser, sampler, Trailing().times(schedule, 40), x, rng=Rng.of(1, 1000)).sign()
    # With noise of its own at each count about as many would agree as with another seed.
    assert (few == many).double().mean() > 0.9
    assert (few == other).double().mean() < 0.85
