"""Counter-based randomness: noise is a pure function of what it is for.

Each draw is keyed by (seed, sample, step, purpose), so sample ``k`` of a seed is the same whatever the batch, the
order, the number of devices or the neighbours, and a resumed run continues bit for bit. There is no state to save.

The bits come from Philox4x32-10 with the seed as its key and (block, step, sample, purpose) as its counter. They are
turned into normal numbers by the Box-Muller transform, formed only from additions, multiplications, divisions and
square roots: IEEE 754 rounds those in one way, whereas library logarithms and sines may differ in the last bit
between the vectorised body and the tail of one array, and between processors and graphics cards.

Source:
    Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox; known-answer vectors in
    the tests). Box, Muller 1958.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 1 << 16  # blocks of four numbers worked on at once, so that the intermediate arrays stay in cache


class Purpose(IntEnum):
    """What a draw is for: two draws of one example at one step differ by their purpose."""

    PRIOR = 0
    STEP = 1
    NOISE = 2
    TIME = 3
    CONDITION = 4
    AUGMENT = 5
    DEQUANTIZE = 6
    SCRATCH = 7
    PARTS = 8


def seed_of(*parts: int | str) -> int:
    """Derive a seed from parts, such as ``seed_of("evaluation", seed)``: stable over machines and versions.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def philox(even: Tensor, odd: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt counters with Philox4x32-10, in place.

    Args:
        even: ``(2, ...)`` int64 in [0, 2**32), words 0 and 2 of the counters; overwritten.
        odd: words 1 and 3 likewise; overwritten.
        key: ``(2, ...)`` int64 in [0, 2**32), both words of the keys; they broadcast against the counters.

    Returns:
        Words 0 and 2, and words 1 and 3, shaped like the counters, independent and in [0, 2**32).
    """
    product, weyl = torch.empty_like(even), torch.empty_like(key)
    weyl[0], weyl[1] = _WEYL
    for _ in range(_ROUNDS):
        # int64 products of 32-bit factors wrap, but keep all 64 bits; the mask drops the sign's copies and what is left
        # above 32 bits in odd words.
        torch.mul(even[1], _MULTIPLIERS[1], out=product[0])
        torch.mul(even[0], _MULTIPLIERS[0], out=product[1])
        torch.bitwise_right_shift(product, 32, out=even).bitwise_xor_(odd).bitwise_xor_(key).bitwise_and_(_MASK)
        odd, product = product, odd
        key = (key + weyl) & _MASK
    return even, odd.bitwise_and_(_MASK)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    *others, last = coefficients
    total = x * last
    for coefficient in reversed(others[1:]):
        total.add_(coefficient).mul_(x)
    return total.add_(others[0])


def _radius(bits: Tensor) -> Tensor:
    """Return sqrt(-2 ln u) in float32 for u = (bits + 1/2) / 2**32."""
    mantissa, exponent = torch.frexp(bits.to(torch.float32).add_(0.5).mul_(2.0**-32))
    centre = math.sqrt(0.5)
    w = (mantissa - centre).div_(mantissa.add_(centre))  # |w| < 0.172, ln(mantissa / centre) = 2 artanh(w)
    artanh = _polynomial(w * w, [1, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11]).mul_(w)
    log = exponent.to(torch.float32).mul_(math.log(2)).add_(math.log(centre)).add_(artanh.mul_(2.0))
    return log.mul_(-2.0).clamp_min_(0.0).sqrt_()


def _direction(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return a point of the unit circle in float32, uniform in its angle."""
    angle = (bits >> 2).to(torch.float32).add_(0.5 - 2.0**29).mul_(math.pi / 2 / 2.0**30)  # within pi/4
    square = angle * angle
    sine = _polynomial(square, [1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880]).mul_(angle)
    cosine = _polynomial(square, [1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800])
    # Turned by pi/4 both are positive; two spare bits, worth 1 and 2, choose the quadrant.
    half = math.sqrt(0.5)
    signs = [(bits & k).to(torch.float32).mul_(2.0 * half / k).sub_(half) for k in (1, 2)]
    return (cosine - sine).mul_(signs[0]), cosine.add_(sine).mul_(signs[1])


def _normals(even: Tensor, odd: Tensor, out: Tensor) -> None:
    radius, (x, y) = _radius(even), _direction(odd)
    torch.mul(x, radius, out=out[:, 0])
    torch.mul(y, radius, out=out[:, 1])


def _uniforms(even: Tensor, odd: Tensor, out: Tensor) -> None:
    # 23 bits: the half step keeps the ends 0 and 1 out, and every value is exact in float32.
    for k, words in enumerate((even, odd)):
        torch.mul((words >> 9).to(torch.float32).add_(0.5), 2.0**-23, out=out[:, k])


@dataclass(frozen=True)
class Rng:
    """The keys of a batch of draws, one per example.

    Attributes:
        seed: int64, ``()`` or ``(B,)``: of the sample or the run.
        sample: ``(B,)`` int64 in [0, 2**32): which sample of the seed, or which example of a data set.
        step: int64 in [0, 2**32), ``()`` or ``(B,)``: sampler step, or epoch.
        position: ``(B,)`` int64: running number of the example, for low-discrepancy sequences.
    """

    seed: Tensor
    sample: Tensor
    step: Tensor
    position: Tensor

    @staticmethod
    def of(
        seed: int | Sequence[int] | Tensor,
        sample: int | Sequence[int] | Tensor,
        step: int | Tensor = 0,
        position: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> "Rng":
        """Make keys from numbers, sequences or tensors.

        Args:
            seed: one seed, or one per example.
            sample: the number of examples (then they are 0, 1, ...), or their indices.
            step: the step of all, or ``(B,)``.
            position: ``(B,)``; ``sample`` unless given.
            device: where the draws are made; that of ``sample``, or the CPU, unless given.

        Raises:
            ValueError: if a key is out of its range.
        """
        if isinstance(sample, int):
            samples = torch.arange(sample, device=device)
        else:
            samples = torch.as_tensor(sample, dtype=torch.int64, device=device)
        where = samples.device
        seeds = torch.as_tensor(seed, dtype=torch.int64, device=where)
        steps = torch.as_tensor(step, dtype=torch.int64, device=where)
        positions = samples if position is None else position.to(where)
        fits = all(v.ndim == 0 or v.shape == samples.shape for v in (seeds, steps)) and positions.shape == samples.shape
        if samples.ndim != 1 or not fits:
            raise ValueError(
                f"expected one key per example: sample has shape {tuple(samples.shape)}, seed {tuple(seeds.shape)}, "
                f"step {tuple(steps.shape)}, position {tuple(positions.shape)}; give sample and position as (B,), the "
                "others as () or (B,)"
            )
        for name, value in (("sample", samples), ("step", steps)):
            if where.type == "cpu" and value.numel() and not 0 <= int(value.min()) <= int(value.max()) <= _MASK:
                raise ValueError(f"{name} indices must lie in [0, 2**32), not {int(value.min())} to {int(value.max())}")
        return Rng(seeds, samples, steps, positions)

    def at(self, step: int | Tensor) -> "Rng":
        """Return the keys of another step."""
        steps = torch.as_tensor(step, dtype=torch.int64, device=self.sample.device)
        return Rng(self.seed, self.sample, steps, self.position)

    def __len__(self) -> int:
        return self.sample.shape[0]

    def __getitem__(self, index: slice) -> "Rng":
        seed, step = (v if v.ndim == 0 else v[index] for v in (self.seed, self.step))
        return Rng(seed, self.sample[index], step, self.position[index])

    def normal(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Draw standard normal numbers: ``(B, *shape)`` float32, bit-equal on every device."""
        return self._draw(shape, purpose, gaussian=True)

    def uniform(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Draw numbers uniform in the open interval (0, 1): ``(B, *shape)`` float32."""
        return self._draw(shape, purpose, gaussian=False)

    def normals(self, shape: Sequence[int], purpose: Purpose, steps: Sequence[int]) -> Tensor:
        """Draw the noise of several steps at once, equal to ``at(step).normal(...)`` of each.

        Returns:
            ``(len(steps), B, *shape)`` float32.
        """
        count, batch = len(steps), len(self)
        step = torch.tensor(steps, dtype=torch.int64).to(self.sample.device).repeat_interleave(batch)
        seed = self.seed if self.seed.ndim == 0 else self.seed.repeat(count)
        many = Rng(seed, self.sample.repeat(count), step, self.position.repeat(count))
        return many.normal(shape, purpose).reshape(count, batch, *shape)

    def _draw(self, shape: Sequence[int], purpose: Purpose, *, gaussian: bool) -> Tensor:
        numel = math.prod(shape)
        blocks = -(-numel // 4)
        out = torch.empty(len(self), 4 * blocks, device=self.sample.device)
        group = max(1, _CHUNK // max(1, blocks))
        for start in range(0, len(self) if blocks else 0, group):
            keys = self[start : start + group]
            # Number j of an example is word j // blocks of block j % blocks; words 0, 1 make a pair, and 2, 3.
            pairs = out[start : start + group].view(len(keys), 2, 2, blocks).permute(1, 2, 0, 3)
            (_normals if gaussian else _uniforms)(*keys._words(blocks, purpose), pairs)
        return out[:, :numel].reshape(len(self), *shape)

    def _words(self, blocks: int, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Return words 0 and 2 and words 1 and 3 of each block, ``(2, B, blocks)`` int64 each."""
        even, odd = (torch.empty(2, len(self), blocks, dtype=torch.int64, device=self.sample.device) for _ in range(2))
        even[0] = torch.arange(blocks, device=even.device)
        odd[0] = self.step.reshape(-1, 1)
        even[1] = self.sample[:, None]
        odd[1] = int(purpose)
        seed = self.seed.reshape(-1, 1)
        return philox(even, odd, torch.stack([seed, seed >> 32]) & _MASK)
