"""The counter-based generator: known answers, independence of how draws are batched, and their distribution.

Statistical tests have fixed seeds, so they pass or fail for ever; their thresholds are at four or five standard errors,
which a sound generator exceeds for one seed in ten thousand.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unfog.diffusion.random import Purpose, Rng, philox, seed_of


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def encrypt(counter: list[int], key: list[int]) -> list[int]:
    even, odd = philox(torch.tensor(counter[::2]), torch.tensor(counter[1::2]), torch.tensor(key))
    return [int(even[0]), int(odd[0]), int(even[1]), int(odd[1])]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        # The known-answer vectors of philox4x32-10 in Random123 (Salmon et al. 2011): zeros, ones, digits of pi.
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers(counter: str, key: str, answer: str) -> None:
    assert encrypt(words(counter), words(key)) == words(answer)


def philox_in_integers(counter: list[int], key: list[int]) -> list[int]:
    """The generator in plain integers, written from the paper."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


word = st.integers(0, 2**32 - 1)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(word, min_size=4, max_size=4), st.lists(word, min_size=2, max_size=2))
def test_philox_equals_itself_in_plain_integers(counter: list[int], key: list[int]) -> None:
    assert encrypt(counter, key) == philox_in_integers(counter, key)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), word, word, st.sampled_from(Purpose), st.integers(0, 40))
def test_a_uniform_draw_is_the_documented_word(
    seed: int, sample: int, step: int, purpose: Purpose, position: int
) -> None:
    draw = Rng.of(seed, [sample], step).uniform((41,), purpose)[0, position].item()
    # 41 numbers take eleven blocks of four words; number i is word i // 11 of block i % 11.
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    bits = philox_in_integers([position % 11, step, sample, int(purpose)], key)[position // 11]
    assert draw == ((bits >> 9) + 0.5) / 2**23


# --- the same draw, however it is asked for


@pytest.mark.parametrize("method", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5, 7), (70001,)])
def test_slices_of_a_batch_are_bit_equal(method: str, shape: tuple[int, ...]) -> None:
    rng = Rng.of(5, 9)
    whole = getattr(rng, method)(shape, Purpose.STEP)
    assert whole.shape == (9, *shape)
    for part in (slice(0, 1), slice(3, 8), slice(8, None), slice(0, 9, 2)):
        assert torch.equal(getattr(rng[part], method)(shape, Purpose.STEP), whole[part])


def test_order_and_neighbours_do_not_matter() -> None:
    index = torch.tensor([900, 3, 17, 2**32 - 1, 0])
    whole = Rng.of(5, index).normal((6,), Purpose.PRIOR)
    assert torch.equal(Rng.of(5, index.flip(0)).normal((6,), Purpose.PRIOR).flip(0), whole)
    for i, sample in enumerate(index.tolist()):
        assert torch.equal(Rng.of(5, [sample]).normal((6,), Purpose.PRIOR)[0], whole[i])


def test_a_batch_may_mix_seeds_and_steps() -> None:
    seeds, steps = torch.tensor([4, -1, 2**62]), torch.tensor([0, 7, 2**32 - 1])
    whole = Rng.of(seeds, [1, 2, 3], steps).normal((5,), Purpose.NOISE)
    for i in range(3):
        alone = Rng.of(int(seeds[i]), [i + 1], int(steps[i])).normal((5,), Purpose.NOISE)
        assert torch.equal(alone[0], whole[i])
    assert torch.equal(Rng.of(seeds, [1, 2, 3], steps)[1:].normal((5,), Purpose.NOISE), whole[1:])


@pytest.mark.parametrize("batch", [1, 6])
def test_many_steps_at_once_are_bit_equal_to_each_step(batch: int) -> None:
    for seed in (11, torch.arange(batch)):
        rng = Rng.of(seed, batch)
        many = rng.normals((3, 5), Purpose.STEP, range(2, 9))
        each = torch.stack([rng.at(step).normal((3, 5), Purpose.STEP) for step in range(2, 9)])
        assert torch.equal(many, each)


def test_large_draws_in_pieces_are_bit_equal_to_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Rng.of(1, 7)
    whole = rng.normal((33,), Purpose.STEP)
    monkeypatch.setattr("unfog.diffusion.random._CHUNK", 9)  # one example at a time
    assert torch.equal(rng.normal((33,), Purpose.STEP), whole)


def test_draws_have_no_state() -> None:
    rng = Rng.of(1, 4)
    first = rng.normal((8,), Purpose.STEP)
    rng.uniform((100,), Purpose.STEP)
    assert torch.equal(rng.normal((8,), Purpose.STEP), first)


def test_every_part_of_the_key_matters() -> None:
    base = Rng.of(3, [5], 7).normal((16,), Purpose.STEP)
    for other in (Rng.of(4, [5], 7), Rng.of(3 + 2**32, [5], 7), Rng.of(3, [6], 7), Rng.of(3, [5], 8)):
        assert not torch.isin(other.normal((16,), Purpose.STEP), base).any()
    for purpose in Purpose:
        if purpose is not Purpose.STEP:
            assert not torch.isin(Rng.of(3, [5], 7).normal((16,), purpose), base).any()


def test_empty_batches_and_shapes_are_drawn() -> None:
    assert Rng.of(0, 0).normal((2, 3), Purpose.STEP).shape == (0, 2, 3)
    assert Rng.of(0, 4).normal((0, 3), Purpose.STEP).shape == (4, 0, 3)


# --- distributions

COUNT = 1 << 18


def normals() -> Tensor:
    return Rng.of(2024, 64).normal((COUNT // 64,), Purpose.PRIOR).double().flatten()


def kolmogorov(sorted_cdf: Tensor) -> float:
    n = len(sorted_cdf)
    rank = torch.arange(n, dtype=torch.float64) / n
    return torch.maximum((sorted_cdf - rank).abs(), (sorted_cdf - rank - 1 / n).abs()).max().item() * math.sqrt(n)


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    x = normals()
    # Standard errors of the first six moments: sqrt((E x^2k - (E x^k)^2) / n).
    for k, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96), (0, 945), (15, 10170)], start=1):
        assert abs((x**k).mean().item() - moment) < 4 * math.sqrt(variance / COUNT)


def test_normal_numbers_follow_the_normal_distribution() -> None:
    # sqrt(n) D exceeds 1.95 for one sample in a thousand.
    assert kolmogorov(torch.special.ndtr(normals().sort().values)) < 1.95


def test_the_tails_of_normal_numbers_are_there() -> None:
    x = normals()
    for bound in (2.0, 3.0, 4.0):
        expected = COUNT * 2 * torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)).item()
        assert abs((x.abs() > bound).sum().item() - expected) < 5 * math.sqrt(expected)


def test_uniform_numbers_are_uniform_in_the_open_interval() -> None:
    u = Rng.of(2024, 64).uniform((COUNT // 64,), Purpose.TIME)
    assert u.dtype is torch.float32
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert kolmogorov(u.double().flatten().sort().values) < 1.95


def test_the_ends_of_the_bits_stay_within_the_open_interval() -> None:
    # Through the private function, since no seed is known to draw these words.
    from unfog.diffusion.random import _normals, _uniforms

    ends = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1]).repeat(2, 1, 1)
    u, x = torch.full((2, 2, 2, 1, 5), torch.nan)
    _uniforms(ends, ends, u)
    assert ((u > 0) & (u < 1)).all()
    # u = 2^-33 is the smallest: sqrt(2 * 33 ln 2) = 6.76 is the largest radius.
    _normals(ends, ends, x)
    assert x.isfinite().all()
    assert (x.abs() < 6.77).all()


def test_the_transform_is_box_mullers_to_float32() -> None:
    from unfog.diffusion.random import _direction, _radius

    bits = torch.cat([torch.arange(0, 1 << 32, 999_983), torch.arange(64), (1 << 32) - 1 - torch.arange(64)])
    radius = _radius(bits).double()
    u = (bits.double() + 0.5) / 2**32
    # float32 rounds u to 6e-8, which near u = 1 is an error of 6e-8 in -2 ln u, of which the root is taken.
    assert ((radius**2 + 2 * u.log()).abs() < 4e-7 * (1 + radius**2)).all()
    x, y = _direction(bits)
    assert ((x.double() ** 2 + y.double() ** 2 - 1).abs() < 4e-7).all()


def test_directions_are_uniform_on_the_circle() -> None:
    from unfog.diffusion.random import _direction

    bits = torch.arange(0, 1 << 32, (1 << 32) // COUNT + 1)
    x, y = _direction(bits)
    angle = torch.atan2(y.double(), x.double()).sort().values / (2 * math.pi) + 0.5
    # The words run through their range evenly, and so do the angles.
    rank = (torch.arange(len(bits), dtype=torch.float64) + 0.5) / len(bits)
    assert (angle - rank).abs().max() < 1e-3


@pytest.mark.parametrize("what", ["neighbouring samples", "steps", "purposes", "seeds", "positions"])
def test_draws_of_different_keys_are_uncorrelated(what: str) -> None:
    n = COUNT // 4
    shape = (n // 64,)
    one = Rng.of(77, 64).normal(shape, Purpose.STEP)
    other = {
        "neighbouring samples": Rng.of(77, torch.arange(1, 65)).normal(shape, Purpose.STEP),
        "steps": Rng.of(77, 64, 1).normal(shape, Purpose.STEP),
        "purposes": Rng.of(77, 64).normal(shape, Purpose.NOISE),
        "seeds": Rng.of(78, 64).normal(shape, Purpose.STEP),
        "positions": one.roll(1, dims=1),
    }[what]
    for f in (lambda x: x, torch.square, torch.sign):
        pair = torch.stack([f(one.double()).flatten(), f(other.double()).flatten()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / math.sqrt(n)


def test_the_four_numbers_of_a_block_are_uncorrelated() -> None:
    draws = Rng.of(5, COUNT // 4).normal((4,), Purpose.STEP).double()
    for f in (lambda x: x, torch.abs):
        correlation = torch.corrcoef(f(draws).T) - torch.eye(4)
        assert correlation.abs().max() < 4.5 / math.sqrt(COUNT // 4)


def test_normal_and_uniform_draws_of_one_key_share_their_words() -> None:
    # Documented by this test: two draws of one key must differ by their purpose, not by their kind.
    rng = Rng.of(3, 4096)
    u, x = (getattr(rng, kind)((2,), Purpose.STEP).double() for kind in ("uniform", "normal"))
    radius = (-2 * u[:, 0].log()).sqrt()
    torch.testing.assert_close(x.norm(dim=1), radius, rtol=1e-3, atol=2e-3)


# --- keys


@pytest.mark.parametrize(
    ("sample", "options"),
    [
        ([-1], {}),
        ([2**32], {}),
        ([0], {"step": -1}),
        ([0], {"step": 2**32}),
        ([[0, 1]], {}),
        ([0, 1], {"step": torch.tensor([0, 1, 2])}),
        ([0, 1], {"position": torch.tensor([0])}),
    ],
)
def test_keys_out_of_range_or_shape_are_refused(sample: list[int], options: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"(must lie in \[0, 2\*\*32\)|expected one key per example)"):
        Rng.of(0, sample, **options)


def test_positions_are_the_samples_unless_given() -> None:
    assert Rng.of(0, [5, 6]).position.tolist() == [5, 6]
    assert Rng.of(0, [5, 6], position=torch.tensor([1, 2]))[1:].position.tolist() == [2]
    assert Rng.of(0, [5, 6], position=torch.tensor([1, 2])).at(3).position.tolist() == [1, 2]


def test_seeds_derived_from_different_parts_differ() -> None:
    seeds = [seed_of(), seed_of(1), seed_of("1"), seed_of(1, 2), seed_of(12), seed_of("a", "b")]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_a_derived_seed_is_the_same_on_every_machine() -> None:
    # Written down once: a change would change every recorded evaluation.
    assert seed_of("evaluation", 0) == 4299481134914086567
