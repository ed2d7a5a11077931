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


def seed_of(*parts: int | str) -> int:
    """Derive a seed from parts, such as ``seed_of("evaluation", seed)``: stable over machines and versions.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encrypt counters with Philox4x32-10.

    Args:
        counter: four int64 tensors of values in [0, 2**32) that broadcast together.
        key: two int64 tensors likewise.

    Returns:
        Four int64 tensors of independent values in [0, 2**32), of the common shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products of 32-bit factors wrap, but keep all 64 bits; the masks drop the sign's copies.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_xor(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total.mul_(x).add_(coefficient)
    return total


def _radius(bits: Tensor) -> Tensor:
    """Return sqrt(-2 ln u) in float32 for u = (bits + 1/2) / 2**32."""
    mantissa, exponent = torch.frexp(bits.to(torch.float32).add_(0.5).mul_(2.0**-32))
    centre = math.sqrt(0.5)
    w = (mantissa - centre).div_(mantissa + centre)  # |w| < 0.172, ln(mantissa / centre) = 2 artanh(w)
    artanh = _polynomial(w * w, [1, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11]).mul_(w)
    log = exponent.to(torch.float32).mul_(math.log(2)).add_(math.log(centre)).add_(artanh.mul_(2.0))
    return log.mul_(-2.0).clamp_min_(0.0).sqrt_()


def _direction(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return a point of the unit circle in float32, uniform in its angle."""
    angle = (bits >> 2).to(torch.float32).add_(0.5 - 2.0**29).mul_(math.pi / 2 / 2.0**30)  # within pi/4
    square = angle * angle
    sine = _polynomial(square, [1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880]).mul_(angle)
    cosine = _polynomial(square, [1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800])
    # Turned by pi/4 both are positive; two spare bits choose the quadrant.
    signs = [((bits >> k) & 1).to(torch.float32).mul_(2.0).sub_(1.0).mul_(math.sqrt(0.5)) for k in (0, 1)]
    return (cosine - sine).mul_(signs[0]), (cosine + sine).mul_(signs[1])


def _normals(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    numbers = []
    for first, second in (words[:2], words[2:]):
        radius = _radius(first)
        x, y = _direction(second)
        numbers += [x.mul_(radius), y.mul_(radius)]
    return numbers


def _uniforms(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    # 23 bits: the half step keeps the ends 0 and 1 out, and every value is exact in float32.
    return [(word >> 9).to(torch.float32).add_(0.5).mul_(2.0**-23) for word in words]


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
        group = max(1, _CHUNK // max(1, blocks))
        parts = [self._words(i, i + group, blocks, purpose, gaussian=gaussian) for i in range(0, len(self), group)]
        if not parts:
            return torch.empty(0, *shape, device=self.sample.device)
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:, :numel].reshape(len(self), *shape)

    def _words(self, start: int, stop: int, blocks: int, purpose: Purpose, *, gaussian: bool) -> Tensor:
        keys = self[start:stop]
        seed, step = (v.expand(len(keys))[:, None] for v in (keys.seed, keys.step))
        block = torch.arange(blocks, device=seed.device)[None]
        last = torch.full_like(step, int(purpose))
        counter = (block.expand(len(keys), -1), step, keys.sample[:, None].expand(-1, blocks), last)
        words = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
        return torch.cat(_normals(words) if gaussian else _uniforms(words), dim=1)
