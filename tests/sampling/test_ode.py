import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from unfog.sampling.ode import Solution, dormand_prince, trajectory

RATES = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)


def decay(y: Tensor, t: Tensor, index: Tensor) -> Tensor:
    return -RATES[index, None].to(y) * y


def bell(y: Tensor, t: Tensor, index: Tensor) -> Tensor:
    """The slope of ``y exp(-t^2)``: it depends on time, and its sign with it."""
    return -2.0 * t[:, None].to(y) * y


def starts(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(0.5, 2.0, 2 * count, dtype=dtype).reshape(count, 2)


class Seen:
    """A slope that keeps what it was asked for."""

    def __init__(self, f: object = decay) -> None:
        self.f, self.times, self.counts = f, list[list[float]](), torch.zeros(3, dtype=torch.int64)

    def __call__(self, y: Tensor, t: Tensor, index: Tensor) -> Tensor:
        self.counts[index] += 1
        self.times.append(t.tolist())
        assert t.dtype is torch.float64
        return self.f(y, t, index)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("end", [2.0, -0.5])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_the_error_is_near_the_tolerance(end: float, tolerance: float) -> None:
    found = dormand_prince(decay, starts(), 0.0, end, rtol=tolerance, atol=tolerance)
    truth = starts() * torch.exp(-RATES * end)[:, None]
    # Errors of some tens of steps add up; where the solution grows they grow with it.
    assert ((found.y - truth).abs() <= 30 * tolerance * (1 + truth.abs())).all()
    assert found.t == end


def test_time_dependent_slopes_are_followed_both_ways() -> None:
    there = dormand_prince(bell, starts(), -1.0, 1.5, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(there.y, starts() * math.exp(1.0 - 1.5**2), rtol=1e-8, atol=0)
    back = dormand_prince(bell, there.y, 1.5, -1.0, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(back.y, starts(), rtol=1e-8, atol=0)


def test_it_takes_as_many_steps_as_scipy() -> None:
    found = dormand_prince(decay, starts(), 0.0, 2.0, rtol=1e-6, atol=1e-9)
    for k, rate in enumerate(RATES.tolist()):
        peer = solve_ivp(lambda t, y, r=rate: -r * y, (0.0, 2.0), starts()[k].numpy(), rtol=1e-6, atol=1e-9)
        # The same pair; another control of the step, and another first one.
        assert found.evaluations[k].item() == pytest.approx(peer.nfev, rel=0.25, abs=12)


def test_each_example_has_steps_of_its_own_and_leaves_when_it_arrives() -> None:
    seen = Seen()
    together = dormand_prince(seen, starts(), 0.0, 2.0)
    assert torch.equal(together.evaluations, seen.counts)
    assert seen.counts[0] < seen.counts[1] < seen.counts[2]
    assert len(seen.times[0]) == 3
    assert len(seen.times[-1]) == 1
    assert any(len(set(times)) > 1 for times in seen.times)


def test_an_example_does_not_depend_on_its_neighbours() -> None:
    together = dormand_prince(decay, starts(), 0.0, 2.0)
    for k in range(3):
        alone = dormand_prince(lambda y, t, index, k=k: decay(y, t, index + k), starts()[k : k + 1], 0.0, 2.0)
        # Elementwise operations on other lengths of vectors may differ in the last bit.
        torch.testing.assert_close(alone.y, together.y[k : k + 1], rtol=1e-13, atol=0)
        assert alone.evaluations.item() == together.evaluations[k].item()


def test_times_between_are_read_off_without_another_evaluation() -> None:
    times = [0.0, 0.013, 0.5, 0.50001, 1.9, 2.0]
    few = dormand_prince(decay, starts(), 0.0, 2.0, rtol=1e-8, atol=1e-10)
    seen = list(trajectory(decay, starts(), times, rtol=1e-8, atol=1e-10))
    assert [solution.t for solution in seen] == times[1:]
    assert torch.equal(seen[-1].y, few.y)
    assert torch.equal(seen[-1].evaluations, few.evaluations)
    for solution in seen:
        truth = starts() * torch.exp(-RATES * solution.t)[:, None]
        # Order 4 between the steps: a digit or two behind the steps themselves, and one more in the slope.
        assert ((solution.y - truth).abs() < 1e-6).all()
        assert ((solution.slope + RATES[:, None] * truth).abs() < 1e-4).all()
    assert all((after.evaluations >= before.evaluations).all() for before, after in pairwise(seen))


def test_the_continuous_solution_is_of_order_4() -> None:
    def middle(length: float) -> float:
        times = (0.3, 0.3 + 0.4 * length, 0.3 + length)
        half, end = trajectory(bell, starts(1), times, rtol=0.9, atol=1.0)
        assert end.evaluations.item() == 8, "two for the first step, and six for the only one"
        truth = starts(1) * math.exp(0.3**2 - (0.3 + 0.4 * length) ** 2)
        return (half.y - truth).abs().max().item()

    # The local error of order 4 falls as length^5.
    assert math.log2(middle(0.2) / middle(0.1)) > 4.8


def test_outputs_come_as_soon_as_every_example_has_passed_them() -> None:
    seen = Seen()
    run = trajectory(seen, starts(), [0.0, 1e-4, 2.0])
    first = next(run)
    counted = seen.counts.clone()
    next(run)
    assert first.t == 1e-4
    assert (counted < seen.counts).any()


def test_float32_states_stay_float32() -> None:
    found = dormand_prince(decay, starts(dtype=torch.float32), 0.0, 2.0, rtol=1e-5, atol=1e-6)
    assert found.y.dtype is found.slope.dtype is torch.float32
    truth = starts() * torch.exp(-RATES * 2.0)[:, None]
    torch.testing.assert_close(found.y.double(), truth, rtol=1e-3, atol=1e-5)


def test_tolerances_may_differ_between_elements() -> None:
    def mixed(y: Tensor, t: Tensor, index: Tensor) -> Tensor:
        return torch.stack([-y[:, 0], torch.cos(40.0 * t)], dim=1)

    def evaluations(second: float) -> int:
        atol = torch.tensor([1e-6, second], dtype=torch.float64)
        return int(dormand_prince(mixed, starts(1), 0.0, 3.0, rtol=0.0, atol=atol).evaluations)

    assert evaluations(1e6) < evaluations(1e-6) / 3


def test_slopes_see_no_time_beyond_the_ends() -> None:
    for start, end in ((0.1, 1.0), (1.0, 0.1)):
        seen = Seen(bell)
        dormand_prince(seen, starts(), start, end, rtol=1e-3, atol=1e-3)
        asked = [t for times in seen.times for t in times]
        assert min(asked) == 0.1
        assert max(asked) == 1.0


def test_no_gradient_flows_through_it() -> None:
    assert not dormand_prince(decay, starts().requires_grad_(), 0.0, 1.0).y.requires_grad


@pytest.mark.parametrize("late", [False, True])
def test_a_slope_that_is_not_finite_is_refused_by_the_number_of_its_example(late: bool) -> None:
    def broken(y: Tensor, t: Tensor, index: Tensor) -> Tensor:
        bad = (index == 1) & ((t > 0.5) | (not late))
        return torch.where(bad[:, None], torch.nan, -y)

    with pytest.raises(FloatingPointError, match=r"samples \[1\] of 3 are not finite"):
        dormand_prince(broken, starts(), 0.0, 1.0)


def test_a_step_that_becomes_too_small_is_told() -> None:
    def jump(y: Tensor, t: Tensor, index: Tensor) -> Tensor:
        # 1 / |t - 1|: no step crosses it.
        return 1.0 / (t - 1.0).abs()[:, None].expand_as(y)

    with pytest.raises(FloatingPointError, match="the step of sample 0 became too small at 1"):
        dormand_prince(jump, starts(1), 0.0, 2.0)


def test_a_budget_that_is_spent_is_told() -> None:
    with pytest.raises(FloatingPointError, match=r"sample \d is at 0\.\d+ on its way from 0 to 2 after 50 eval.*rtol"):
        dormand_prince(decay, starts(), 0.0, 2.0, max_evaluations=50)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [0.0, 1.0, 0.5], [1.0, 0.5, 0.5]])
def test_times_that_neither_rise_nor_fall_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least two times that rise or fall strictly"):
        list(trajectory(decay, starts(), times))


def test_other_bad_settings_are_refused() -> None:
    with pytest.raises(TypeError, match=r"states of float32 or float64, not torch\.bfloat16: give y0\.float"):
        dormand_prince(decay, starts(dtype=torch.bfloat16), 0.0, 1.0)
    for rtol, atol, message in (
        (-1.0, 1e-6, "rtol of at least 0"),
        (1e-3, math.nan, "atol of at least 0"),
        (0.0, 0.0, "rtol or atol"),
    ):
        with pytest.raises(ValueError, match=message):
            dormand_prince(decay, starts(), 0.0, 1.0, rtol=rtol, atol=atol)
    with pytest.raises(ValueError, match="at least one example"):
        dormand_prince(decay, starts(3)[:0], 0.0, 1.0)


def test_a_solution_names_what_it_holds() -> None:
    assert Solution._fields == ("t", "y", "slope", "evaluations")
