import math

import pytest
import torch
from torch import Tensor, nn

from unfog.training.ema import (
    LONGEST,
    PowerEMA,
    Snapshot,
    format_length,
    gamma_of,
    profile_product,
    reconstruct,
    reconstruction_weights,
    sigma_rel_of,
)

LENGTHS = (0.05, 0.10)


def walk(steps: int) -> Tensor:
    """Weights that drift like those of a network: a random walk (steps, 4), float64."""
    return torch.randn(steps, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)


class Weights(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((4,), 100.0, dtype=dtype))
        self.register_buffer("count", torch.tensor(0))

    def set(self, values: Tensor) -> None:
        with torch.no_grad():
            self.values.copy_(values)
            self.count += 1


def track(path: Tensor, lengths: tuple[float, ...], unit: int = 1, every: int = 0) -> tuple[PowerEMA, list[Snapshot]]:
    module = Weights()
    ema = PowerEMA(module, lengths)
    snapshots = []
    for step, values in enumerate(path, start=1):
        module.set(values)
        ema.update(step * unit)
        if every and step % every == 0:
            stored = [{k: v.clone() for k, v in ema.weights(s).items()} for s in lengths]
            snapshots += [Snapshot(s, step * unit, w, ema.copied) for s, w in zip(lengths, stored, strict=True)]
    return ema, snapshots


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56), (0.20, 1.83), (0.25, 0.72)]
)
def test_the_exponents_are_the_published_ones(sigma_rel: float, gamma: float) -> None:
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.005)  # printed with two decimals


@pytest.mark.parametrize("sigma_rel", [0.001, 0.05, 0.1, 0.28])
def test_length_and_exponent_are_each_others_inverse(sigma_rel: float) -> None:
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, LONGEST, 0.5])
def test_lengths_out_of_range_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match="sigma_rel in"):
        gamma_of(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.10, 0.25])
def test_the_average_is_the_sum_weighted_by_the_profile(sigma_rel: float) -> None:
    path = walk(200)
    ema, _ = track(path, (sigma_rel,))
    edges = (torch.arange(201, dtype=torch.float64) / 200) ** (gamma_of(sigma_rel) + 1)
    expected = (edges.diff()[:, None] * path).sum(0)  # the integral of the profile over each step
    # 200 additions of numbers of size 10 in float64
    torch.testing.assert_close(ema.weights(sigma_rel)["values"], expected, rtol=0, atol=1e-12)


def test_the_start_has_no_weight() -> None:
    ema, _ = track(walk(1), LENGTHS)
    assert torch.equal(ema.weights(0.10)["values"], walk(1)[0])


def test_counting_steps_or_examples_is_the_same_to_the_last_bit() -> None:
    steps, _ = track(walk(50), LENGTHS)
    examples, _ = track(walk(50), LENGTHS, unit=128)
    assert torch.equal(steps.weights(0.05)["values"], examples.weights(0.05)["values"])


def test_weights_that_stood_twice_as_long_count_as_two_updates() -> None:
    module = Weights()
    once, twice = PowerEMA(module, (0.1,)), PowerEMA(module, (0.1,))
    for step, values in enumerate(walk(20), start=1):
        module.set(values)
        once.update(2 * step)
        twice.update(2 * step - 1)
        twice.update(2 * step)
    # rounding of 40 updates in float64
    torch.testing.assert_close(once.weights(0.1), twice.weights(0.1), rtol=1e-12, atol=1e-12)


def test_an_update_is_one_fused_call_per_length(monkeypatch: pytest.MonkeyPatch) -> None:
    ema = PowerEMA(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), (0.05, 0.10, 0.15))
    real, calls = torch._foreach_lerp_, []
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: (calls.append(len(a[0])), real(*a)))
    ema.update(1)
    assert calls == [4, 4, 4]


def test_buffers_are_copied() -> None:
    ema, _ = track(walk(7), LENGTHS)
    assert ema.copied == ("count",)
    assert int(ema.weights(0.05)["count"]) == 7


def test_low_precision_weights_are_averaged_in_float32() -> None:
    module = Weights(torch.bfloat16)
    ema = PowerEMA(module, (0.1,))
    for step in range(1, 4):
        module.set(torch.full((4,), 1.0 + step / 128))
        ema.update(step)
    average = ema.weights(0.1)["values"]
    assert average.dtype == torch.float32
    assert not torch.equal(average, average.to(torch.bfloat16).float())


def test_the_average_fits_the_network() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema = PowerEMA(module, (0.1,))
    ema.update(1)
    module.load_state_dict(ema.weights(0.1), strict=True)


def test_averages_that_were_saved_continue_bit_for_bit() -> None:
    path = walk(30)
    whole, _ = track(path, LENGTHS)
    half, _ = track(path[:15], LENGTHS)
    module = Weights()
    resumed = PowerEMA(module, LENGTHS)
    resumed.load({length: {k: v.clone() for k, v in half.weights(length).items()} for length in LENGTHS}, half.time)
    for step, values in enumerate(path[15:], start=16):
        module.set(values)
        resumed.update(step)
    assert torch.equal(resumed.weights(0.10)["values"], whole.weights(0.10)["values"])


def test_time_must_advance() -> None:
    ema, _ = track(walk(3), LENGTHS)
    with pytest.raises(ValueError, match="a time after the last update at 3, got 3"):
        ema.update(3)


def test_an_untracked_length_is_refused() -> None:
    ema, _ = track(walk(3), LENGTHS)
    with pytest.raises(ValueError, match=r"one of the EMA lengths \(0.05, 0.1\), got 0.2"):
        ema.weights(0.2)


def test_inner_products_of_profiles_agree_with_numerical_integration() -> None:
    pairs = [((3.0, 6.94), (8.0, 16.97)), ((8.0, 16.97), (3.0, 6.94)), ((5.0, 1.0), (5.0, 3.0))]
    for (ta, ga), (tb, gb) in pairs:
        end = min(ta, tb)
        t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * end
        product = (ga + 1) * t**ga / ta ** (ga + 1) * (gb + 1) * t**gb / tb ** (gb + 1)
        found = profile_product(*(torch.tensor(v, dtype=torch.float64) for v in (ta, ga, tb, gb)))
        # the midpoint rule on 1e5 cells of a smooth function
        assert float(found) == pytest.approx(float(product.mean() * end), rel=1e-7)


def test_a_stored_average_is_reconstructed_from_itself() -> None:
    stored = [(t, s) for t in (10, 20, 30, 40) for s in LENGTHS]
    weights, error = reconstruction_weights(stored, 30, 0.10)
    expected = torch.tensor([float(entry == (30, 0.10)) for entry in stored], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)  # singular values below 1e-12 are dropped
    assert error < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.15])
def test_a_third_length_is_reconstructed_from_two(sigma_rel: float) -> None:
    path = walk(960)
    _, snapshots = track(path, LENGTHS, unit=8, every=30)
    direct, _ = track(path, (sigma_rel,), unit=8)
    found = reconstruct(snapshots, sigma_rel)["values"]
    # With 32 snapshots the combined profile is within 0.1 % of the wanted one; the measure is how far the weights
    # themselves wander within the averaged span.
    span = path[-int(960 * 4 * sigma_rel) :].std(0)
    assert ((found - direct.weights(sigma_rel)["values"]).abs() < 1e-3 * span).all()


def test_the_error_falls_fast_with_the_number_of_snapshots() -> None:
    def error(count: int) -> float:
        stored = [(1000 * (i + 1) // count, s) for i in range(count) for s in LENGTHS]
        return reconstruction_weights(stored, 1000, 0.075)[1]

    # The source measures a mean squared error of order n**-4, that is n**-2 for its root.
    assert error(40) < error(10) / 12


def test_an_earlier_time_can_be_reconstructed() -> None:
    path = walk(400)
    _, snapshots = track(path, LENGTHS, every=10)
    direct, _ = track(path[:300], (0.075,))
    found = reconstruct(snapshots, 0.075, time=300)
    assert (found["values"] - direct.weights(0.075)["values"]).abs().max() < 1e-3 * path[200:300].std(0).min()
    assert int(found["count"]) == 300


def test_a_time_after_the_last_snapshot_is_refused() -> None:
    _, snapshots = track(walk(20), LENGTHS, every=10)
    with pytest.raises(ValueError, match=r"a time in \(0, 20\], the last that was stored, got 21"):
        reconstruct(snapshots, 0.075, time=21)


def test_snapshots_of_different_networks_are_refused() -> None:
    one, two = (Snapshot(0.1, t, {name: torch.zeros(1)}) for t, name in ((1, "a"), (2, "b")))
    with pytest.raises(ValueError, match=r"time 2 differs in \['a', 'b'\]"):
        reconstruct([one, two], 0.1)


@pytest.mark.parametrize(
    ("sigma_rel", "text"), [(0.05, "0.050"), (0.1, "0.100"), (0.0625, "0.0625"), (1 / 7, "0.14285714285714285")]
)
def test_names_of_lengths_tell_them_exactly(sigma_rel: float, text: str) -> None:
    assert format_length(sigma_rel) == text
    assert math.isclose(float(text), sigma_rel, rel_tol=0)
