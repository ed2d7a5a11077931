"""What is learned of a schedule: the gradient that lowers the variance, and the freezing."""

import math

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.curves import LogLinear
from unfog.diffusion.learned import FLOOR, Learned, Learner, ScheduledNetwork

T = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def moved(parts: int = 6) -> Learner:
    """A learner away from where it began."""
    learner = Learner(Learned(9.0, -6.0, parts))
    with torch.no_grad():
        learner.logits += torch.linspace(-1.0, 1.0, parts)
        learner.ends += torch.tensor([-0.5, 0.3])
    return learner


def rates(log_snr: Tensor) -> Tensor:
    """A share of the bound for a unit of log-SNR: large on the clean side, small on the noisy one."""
    return 0.5 * torch.sigmoid(log_snr) + 0.01


def test_learning_begins_with_the_straight_line() -> None:
    begin = Learned(9.0, -6.0)
    frozen = Learner(begin).frozen()
    torch.testing.assert_close(frozen.log_snr(T), LogLinear(9.0, -6.0).log_snr(T), rtol=0, atol=1e-12)
    torch.testing.assert_close(begin.log_snr(T), LogLinear(9.0, -6.0).log_snr(T), rtol=0, atol=0)
    # What a network is told must not jump when learning begins.
    torch.testing.assert_close(frozen.network_time(T), begin.network_time(T), rtol=0, atol=1e-9)


def test_the_frozen_schedule_is_the_live_one_to_the_bit() -> None:
    learner = moved()
    live, frozen = learner.live(), learner.frozen()
    for t in (T, T.float()):
        for function in ("alpha", "sigma", "network_time"):
            assert torch.equal(getattr(live, function)(t).detach(), getattr(frozen, function)(t))


def test_the_live_schedule_follows_its_learner_and_the_frozen_one_does_not() -> None:
    learner = moved()
    live, frozen = learner.live(), learner.frozen()
    before = live.log_snr(T).detach(), frozen.log_snr(T)
    with torch.no_grad():
        learner.ends += 1.0
    assert not torch.equal(live.log_snr(T).detach(), before[0])
    assert torch.equal(frozen.log_snr(T), before[1])


# The first forward differentiation of a process makes torch 2.13 import a module that warns.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_the_fall_of_the_log_snr_is_its_rate() -> None:
    learner = moved()
    torch.testing.assert_close(learner.live().fall(T).detach(), -learner.frozen().rates(T).log_snr, rtol=1e-9, atol=0)


def test_the_masses_are_shares_of_the_time_of_which_none_vanishes() -> None:
    learner = moved(5)
    with torch.no_grad():
        learner.logits[0] = -1e4
    masses = learner.masses.detach()
    assert masses.sum().item() == pytest.approx(1.0, rel=1e-14)
    assert masses[0].item() == pytest.approx(FLOOR / 5, rel=1e-12)


def test_the_bound_does_not_depend_on_the_masses_and_its_gradient_reaches_the_ends_alone() -> None:
    learner = moved()
    live = learner.live()
    bound = (live.fall(T) * rates(live.line(T))).mean()
    clean, noisy = learner.ends.tolist()
    exact = 0.5 * (math.log1p(math.exp(clean)) - math.log1p(math.exp(noisy))) + 0.01 * (clean - noisy)
    # The midpoint rule on 20,000 points, of which those beside a knot count for the wrong part.
    assert bound.item() == pytest.approx(exact, rel=1e-4)
    bound.backward()
    assert learner.logits.grad is None
    assert learner.ends.grad is not None
    slopes = rates(learner.ends.detach().double())
    # d/d clean of the integral is the rate there, d/d noisy minus the rate there.
    torch.testing.assert_close(learner.ends.grad.double(), slopes * torch.tensor([1.0, -1.0]), rtol=1e-3, atol=1e-4)


def test_the_surrogate_has_the_gradient_of_half_the_second_moment() -> None:
    learner = moved()
    live = learner.live()
    estimates = (live.fall(T) * rates(live.line(T))).detach()
    learner.surrogate(T, estimates).backward()
    assert learner.logits.grad is not None

    def half_second_moment(logits: Tensor) -> Tensor:
        # The exact moment: parts of equal width in log-SNR, each with its mass.
        clean, noisy = learner.ends.detach().double()
        masses = FLOOR / len(logits) + (1 - FLOOR) * logits.softmax(0)
        width = (clean - noisy) / len(logits)
        part = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        levels = clean - width * (torch.arange(len(logits), dtype=torch.float64)[:, None] + part)
        return 0.5 * (width**2 * rates(levels).square().mean(1) / masses).sum()

    logits = learner.logits.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(half_second_moment(logits), logits)
    # Sampled at 20,000 even times, of which each part holds hundreds; float32 gradients.
    torch.testing.assert_close(learner.logits.grad.double(), wanted, rtol=2e-3, atol=1e-4)


def test_learning_makes_all_times_contribute_alike() -> None:
    learner = Learner(Learned(9.0, -6.0, 16))
    live = learner.live()
    optimizer = torch.optim.Adam([learner.logits], lr=0.05)

    def deviation() -> float:
        return float((live.fall(T) * rates(live.line(T))).detach().std())

    before = deviation()
    for _ in range(300):
        optimizer.zero_grad()
        learner.surrogate(T, (live.fall(T) * rates(live.line(T))).detach()).backward()
        optimizer.step()
    # What is left is the spread within a part, and the floor that keeps the flat end from vanishing.
    assert deviation() < 0.2 * before


def test_a_network_and_its_schedule_are_saved_under_one_roof() -> None:
    network = ScheduledNetwork(nn.Linear(2, 2), Learned(parts=3))
    assert set(network.state_dict()) == {"network.weight", "network.bias", "learner.ends", "learner.logits"}


@pytest.mark.parametrize(
    ("make", "told"),
    [(lambda: Learned(parts=0), "at least 1 of parts"), (lambda: Learned(-5.0, 5.0), "log_snr_min < log_snr_max")],
)
def test_settings_out_of_range_are_refused(make: object, told: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"^expected .*{told}"):
        make()
