import pytest
import torch
from torch import Tensor

from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VarianceExploding, linear
from unfog.evaluation.tuning import NOISIEST, Numbers, Trajectories, distances_of, improved, mean_distance
from unfog.sampling.fitted import Fitted, Stage
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import LogSNRUniform, Trailing
from unfog.sampling.sampler import sample

SCHEDULES = [Cosine(), RectifiedFlow(3.0), VarianceExploding(), linear()]


def trajectories(schedule: Schedule, seed: int, count: int = 128) -> Trajectories:
    """Trajectories on a mixture of three Gaussians in two dimensions, float64."""
    means = torch.tensor([[-0.9, 0.2], [0.5, 0.7], [0.1, -0.6]], dtype=torch.float64)
    denoiser = analytic.mixture(Gaussian(schedule), means, 0.3)
    rng = Rng.of(seed, count)
    noise = denoiser.process.prior((2,), rng=rng, dtype=torch.float64)
    times = LogSNRUniform(0.01, 80.0).times(schedule, 100)
    return Trajectories(denoiser, {}, noise, sample(denoiser, DDIM(), times, noise, rng=rng))


def table(schedule: Schedule, steps: int = 4) -> Fitted:
    return Fitted.like(DDIM(), schedule, LogSNRUniform(0.1, 20.0).times(schedule, steps))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_numbers_are_a_table_and_back(schedule: Schedule) -> None:
    numbers = Numbers.of(table(schedule))
    again = Numbers.of(numbers.table)
    # Through times and back: log-SNRs of up to 10 are good to that many roundings and those of the interpolation.
    torch.testing.assert_close(again.values, numbers.values, rtol=0, atol=1e-9)
    assert len(numbers.values) == len(numbers.first) == 3 + 4 + 6


def test_a_table_that_tells_of_pure_noise_is_told_of_something_that_can_be_moved() -> None:
    numbers = Numbers.of(Fitted(Cosine(), (Stage(1.0, 1.0, (1.0,)), Stage(0.5, 0.5, (1.2, -0.2)))))
    assert numbers.values[1] == NOISIEST
    assert numbers.table.stages[0].t == 1.0
    assert numbers.table.stages[0].told < 1


def test_a_run_equals_the_sampler(all_numbers: Numbers) -> None:
    part = trajectories(all_numbers.schedule, 0, 5)
    fitted = all_numbers.table
    times = fitted.grid.times(fitted.schedule, len(fitted.stages))
    expected = sample(part.denoiser, fitted, times, part.noise, rng=Rng.of(0, 5))
    assert torch.equal(part.run(all_numbers.rows)[0], expected)


@pytest.fixture
def all_numbers() -> Numbers:
    """Numbers of which none is what a fixed table has."""
    numbers = Numbers.of(table(Cosine()))
    step = 0.05 * torch.linspace(-1.0, 1.0, len(numbers.values), dtype=torch.float64)
    moved = numbers.plus(step)
    assert moved is not None
    return moved


def test_known_estimates_are_not_made_again(all_numbers: Numbers) -> None:
    part = trajectories(all_numbers.schedule, 0, 5)
    whole, estimates = part.run(all_numbers.rows)
    for known in range(5):
        assert torch.equal(part.run(all_numbers.rows, estimates[:known])[0], whole)


def test_evaluations_before_the_first_that_a_number_changes_stay(all_numbers: Numbers) -> None:
    part = trajectories(all_numbers.schedule, 0, 3)
    _, before = part.run(all_numbers.rows)
    for (moved, _), first in zip(all_numbers.quotients(), all_numbers.first, strict=True):
        _, after = part.run(moved.rows)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same[:first] == [True] * first
        assert not any(same[first : first + 1]), "the first that it changes is changed"


def test_times_that_would_not_fall_are_no_numbers(all_numbers: Numbers) -> None:
    step = torch.zeros_like(all_numbers.values)
    step[0] = 100.0
    assert all_numbers.plus(step) is None
    assert all_numbers.plus(torch.full_like(step, torch.nan)) is None


def test_two_times_that_nearly_meet_are_moved_apart() -> None:
    stages = (Stage(1.0, 0.9, (1.0,)), Stage(0.5, 0.5, (1.0, 0.0)), Stage(0.499, 0.499, (1.0, 0.0, 0.0)))
    numbers = Numbers.of(Fitted(Cosine(), stages))
    assert numbers.quotients()[0][1] < 0 < numbers.quotients()[2][1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_each_step_is_nearer_on_the_trajectories_it_is_chosen_on(schedule: Schedule) -> None:
    making, choosing = trajectories(schedule, 1), [trajectories(schedule, 2)]
    numbers = Numbers.of(table(schedule))
    distance = begun = mean_distance(numbers, choosing)
    for _ in range(4):
        better = improved(numbers, distance, [making], choosing)
        if better is None:
            break
        assert better[1] < distance
        numbers, distance = better
        assert distance == mean_distance(numbers, choosing)
    # Euler's four steps leave much to be gained.
    assert distance < 0.5 * begun


def test_nothing_is_better_than_what_meets_the_solution() -> None:
    numbers = Numbers.of(table(Cosine()))
    part = trajectories(Cosine(), 1)
    met = Trajectories(part.denoiser, part.cond, part.noise, part.run(numbers.rows)[0])
    assert mean_distance(numbers, [met]) == 0
    assert improved(numbers, 0.0, [met], [met]) is None


def test_distances_are_root_mean_squares() -> None:
    numbers = Numbers.of(table(Cosine()))
    part = trajectories(Cosine(), 1, 2)
    end: Tensor = part.run(numbers.rows)[0]
    off = Trajectories(part.denoiser, part.cond, part.noise, end + torch.tensor([[0.3, 0.4], [0.0, 1.0]]))
    # The root of (0.09 + 0.16) / 2, and of 1 / 2.
    torch.testing.assert_close(distances_of(numbers, [off]), torch.tensor([0.125, 0.5]).double().sqrt())


def test_a_denoiser_that_breaks_down_is_infinitely_far() -> None:
    numbers = Numbers.of(Fitted.like(DDIM(), Cosine(), Trailing().times(Cosine(), 2)))
    part = trajectories(Cosine(), 1, 2)
    assert mean_distance(numbers, [Trajectories(part.denoiser, {}, part.noise * torch.nan, part.solution)]) == float(
        "inf"
    )


def test_a_time_without_room_stays() -> None:
    stages = [Stage(1.0, 0.9, (1.0,))]
    stages += [Stage(0.5 - k / 1000, 0.5, (1.0, *[0.0] * (k + 1))) for k in range(3)]
    numbers = Numbers.of(Fitted(Cosine(), tuple(stages)))
    assert [h for _, h in numbers.quotients()[:3]] == [-0.01, 1.0, 0.01]
    assert numbers.quotients()[1][0] is numbers


def test_what_is_told_at_first_changes_alone() -> None:
    numbers = Numbers.of(table(Cosine()))
    other = numbers.telling(-2.0)
    before, after = numbers.table.stages, other.table.stages
    assert Cosine().log_snr(torch.tensor(after[0].told, dtype=torch.float64)).item() == pytest.approx(-4.0)
    assert after[1:] == before[1:]
    assert (after[0].t, after[0].weights) == (before[0].t, before[0].weights)
