import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from unfog.training.ema import (
    LONGEST,
    Average,
    Exponential,
    Power,
    Snapshot,
    Update,
    WeightAverages,
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


def track(
    path: Tensor, lengths: tuple[float | Average, ...], unit: int = 1, every: int = 0
) -> tuple[WeightAverages, list[Snapshot]]:
    module = Weights()
    ema = WeightAverages(module, lengths)
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
    once, twice = WeightAverages(module, (0.1,)), WeightAverages(module, (0.1,))
    for step, values in enumerate(walk(20), start=1):
        module.set(values)
        once.update(2 * step)
        twice.update(2 * step - 1)
        twice.update(2 * step)
    # rounding of 40 updates in float64
    torch.testing.assert_close(once.weights(0.1), twice.weights(0.1), rtol=1e-12, atol=1e-12)


def test_an_update_is_one_fused_call_per_average(monkeypatch: pytest.MonkeyPatch) -> None:
    ema = WeightAverages(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), (0.05, 0.10, Exponential()))
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
    ema = WeightAverages(module, (0.1,))
    for step in range(1, 4):
        module.set(torch.full((4,), 1.0 + step / 128))
        ema.update(step)
    average = ema.weights(0.1)["values"]
    assert average.dtype == torch.float32
    assert not torch.equal(average, average.to(torch.bfloat16).float())


def test_the_average_fits_the_network() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema = WeightAverages(module, (0.1,))
    ema.update(1)
    module.load_state_dict(ema.weights(0.1), strict=True)


def test_averages_that_were_saved_continue_bit_for_bit() -> None:
    # 9 / (10 + n) falls below 0.5 at n = 9 and below 0.3 at n = 21: before and after the break in the warm-ups.
    kinds = (*LENGTHS, Exponential(0.5), Exponential(0.7), Exponential(0.7, warmup=False))
    path = walk(30)
    whole, _ = track(path, kinds)
    half, _ = track(path[:15], kinds)
    module = Weights()
    resumed = WeightAverages(module, kinds)
    saved = {kind: {k: v.clone() for k, v in half.weights(kind).items()} for kind in half.kinds}
    resumed.load(saved, half.time, half.updates)
    for step, values in enumerate(path[15:], start=16):
        module.set(values)
        resumed.update(step)
    for kind in kinds:
        assert torch.equal(resumed.weights(kind)["values"], whole.weights(kind)["values"])


def test_time_must_advance() -> None:
    ema, _ = track(walk(3), LENGTHS)
    with pytest.raises(ValueError, match="a time after the last update at 3, got 3"):
        ema.update(3)


def test_an_untracked_length_is_refused() -> None:
    ema, _ = track(walk(3), LENGTHS)
    with pytest.raises(ValueError, match=r"one of the averages \['ema-0.050', 'ema-0.100'\], got 0.2"):
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


# --- constant decay


def published_decays(decay: float, updates: int) -> list[float]:
    """The decay of each update by TensorFlow's formula, n counted from 1."""
    return [min(decay, (1 + n) / (10 + n)) for n in range(1, updates + 1)]


@pytest.mark.parametrize("decay", [0.5, 0.65, 0.9, 0.9999])
def test_the_first_updates_keep_what_the_published_warm_up_keeps(decay: float) -> None:
    shares = [Exponential(decay).share(Update(n, n - 1, n)) for n in range(1, 21)]
    # Two ways of rounding 1 - beta: half a unit in the last place of 1 each.
    assert [1.0 - share for share in shares] == pytest.approx(published_decays(decay, 20), rel=0, abs=2.0**-52)


def test_without_the_warm_up_every_update_keeps_the_same() -> None:
    shares = {Exponential(0.999, warmup=False).share(Update(n, n - 1, n)) for n in (1, 2, 20, 1_000_000)}
    assert shares == {1.0 - 0.999}


@pytest.mark.parametrize("updates", [1, 10, 500])
def test_constant_decay_has_its_closed_form_on_a_line(updates: int) -> None:
    # Weights start + slope n: after n updates the average lags the line by a geometric sum,
    # slope beta (1 - beta**n) / (1 - beta).
    start, slope, beta = 100.0, 0.25, 0.98
    path = start + slope * torch.arange(1, updates + 1, dtype=torch.float64)[:, None].expand(-1, 4)
    ema, _ = track(path, (Exponential(beta, warmup=False),))
    lag = slope * beta * (1 - beta**updates) / (1 - beta)
    expected = torch.full((4,), start + slope * updates - lag, dtype=torch.float64)
    # 500 roundings of numbers of size 200
    torch.testing.assert_close(ema.weights(ema.kinds[0])["values"], expected, rtol=0, atol=2e-11)


@pytest.mark.parametrize("updates", [1, 10, 400])
def test_the_warm_up_has_its_closed_form_on_a_line(updates: int) -> None:
    # As long as it warms up, the weights after update j or an earlier one weigh (j+2)...(j+10) / ((n+2)...(n+10)), so
    # the lag behind the line is slope / 10 times n + 1 - 10! / ((n+2)...(n+10)).
    start, slope = 100.0, 0.25
    path = start + slope * torch.arange(1, updates + 1, dtype=torch.float64)[:, None].expand(-1, 4)
    ema, _ = track(path, (Exponential(0.99),))  # 9 / (10 + n) reaches 0.01 at n = 890
    lag = slope / 10 * (updates + 1 - math.factorial(10) / math.prod(range(updates + 2, updates + 11)))
    expected = torch.full((4,), start + slope * updates - lag, dtype=torch.float64)
    torch.testing.assert_close(ema.weights(ema.kinds[0])["values"], expected, rtol=0, atol=2e-11)


KINDS = (Power(0.05), Power(0.2), Exponential(0.8), Exponential(0.9999), Exponential(0.97, warmup=False))


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("updates", [1, 7, 200])
def test_an_average_is_the_sum_weighted_by_its_profile(kind: Average, updates: int) -> None:
    initial = Weights().values.detach()[None]
    path = walk(updates)
    ema, _ = track(path, (kind,))
    profile = kind.profile(updates)
    assert float(profile.sum()) == pytest.approx(1.0, rel=1e-13)
    # 200 additions of numbers of size 100 in float64
    torch.testing.assert_close(ema.weights(kind)["values"], profile @ torch.cat([initial, path]), rtol=0, atol=1e-11)


def test_averages_kept_together_are_those_kept_alone() -> None:
    path = walk(60)
    together, _ = track(path, KINDS)
    for kind in KINDS:
        alone, _ = track(path, (kind,))
        assert torch.equal(alone.weights(kind)["values"], together.weights(kind)["values"])
    assert len({tuple(together.weights(kind)["values"].tolist()) for kind in KINDS}) == len(KINDS)


def test_constant_decay_counts_updates_whatever_their_time() -> None:
    kind, module = Exponential(0.8), Weights()
    even, uneven = WeightAverages(module, (kind,)), WeightAverages(module, (kind,))
    for step, values in enumerate(walk(30), start=1):
        module.set(values)
        even.update(step)
        uneven.update(step**3)
    assert torch.equal(even.weights(kind)["values"], uneven.weights(kind)["values"])


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25])
def test_the_relative_length_of_a_power_average_is_its_own(sigma_rel: float) -> None:
    # The profile in 10,000 steps instead of an integral
    assert Power(sigma_rel).relative_length(10_000) == pytest.approx(sigma_rel, rel=1e-4)


def test_the_relative_length_of_a_long_constant_decay_is_that_of_a_geometric_profile() -> None:
    # A geometric distribution of rate 1 - beta has the standard deviation sqrt(beta) / (1 - beta); what was before
    # the 40 lengths of the run weighs exp(-40).
    kind = Exponential(0.999, warmup=False)
    assert kind.relative_length(40_000) == pytest.approx(math.sqrt(0.999) / 0.001 / 40_000, rel=1e-9)
    # 9,000 updates of the 40,000 were warming up, of which exp(-31) is left.
    assert Exponential(0.999).relative_length(40_000) == pytest.approx(kind.relative_length(40_000), rel=1e-9)


def test_a_warm_up_is_a_power_average_of_exponent_8() -> None:
    # Moving by 9 / (10 + n) is moving by (gamma + 1) / n but for the first updates.
    assert Exponential(0.9999).relative_length(50_000) == pytest.approx(sigma_rel_of(8.0), rel=1e-3)


def test_a_relative_length_wants_an_update() -> None:
    with pytest.raises(ValueError, match="at least 1 update, got 0"):
        Exponential().relative_length(0)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_decays_out_of_range_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"an EMA decay in \(0, 1\)"):
        Exponential(decay)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Power(0.05), "ema-0.050"),
        (Power(0.0625), "ema-0.0625"),
        (Exponential(), "ema-decay-0.9999"),
        (Exponential(0.999, warmup=False), "ema-decay-0.999-no-warmup"),
    ],
)
def test_files_are_named_by_what_they_hold(kind: Average, name: str) -> None:
    assert kind.name == name


def test_the_same_average_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="EMA lengths that differ"):
        WeightAverages(Weights(), (0.05, Power(0.05)))


def test_a_saved_average_that_is_missing_is_named() -> None:
    ema, saved = WeightAverages(Weights(), (0.05, Exponential())), WeightAverages(Weights(), (0.05,))
    with pytest.raises(ValueError, match=r"missing \['ema-decay-0.9999'\]"):
        ema.load({kind: saved.weights(kind) for kind in saved.kinds}, 3, 3)


def test_constant_decay_cannot_be_formed_after_the_run() -> None:
    _, snapshots = track(walk(20), LENGTHS, every=10)
    with pytest.raises(
        ValueError, match=r"got Exponential\(decay=0.9999, warmup=True\): others cannot be formed after"
    ):
        reconstruct(snapshots, Exponential())
    assert torch.equal(
        reconstruct(snapshots, Power(0.075))["values"],
        reconstruct(snapshots, 0.075)["values"],
    )


def test_shards_are_averaged_where_they_lie() -> None:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain, sharded = nn.Linear(3, 4), nn.Linear(3, 4)
        sharded.load_state_dict(plain.state_dict())
        for name, parameter in list(sharded.named_parameters()):
            shard = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            setattr(sharded, name, nn.Parameter(shard))
        kinds = (0.1, Exponential(0.5))
        one, two = WeightAverages(plain, kinds), WeightAverages(sharded, kinds)
        for time in range(1, 5):
            with torch.no_grad():
                for parameter in (*plain.parameters(), *sharded.parameters()):
                    parameter.mul_(1.5)
            one.update(time)
            two.update(time)
        for kind in kinds:
            for name, expected in one.weights(kind).items():
                found = two.weights(kind)[name]
                assert isinstance(found, DTensor)
                assert found.placements == (Shard(0),)
                assert torch.equal(found.full_tensor(), expected)
    finally:
        dist.destroy_process_group()
