"""Denoisers: estimate x0 from x_t. Whatever a network predicts, samplers only ever see x0.

Guidance, caching and editing are denoisers around a denoiser.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unfog.diffusion.checks import require_precise
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.process import Process
from unfog.diffusion.schedule import log_snr
from unfog.diffusion.shapes import align

Cond = Mapping[str, Tensor]


class Prediction(NamedTuple):
    """What a denoiser answers.

    Attributes:
        x0: ``E[x0 | x_t]`` in the shape of ``x_t`` (for discrete data: logits over x0).
        variance_fraction: where the variance of the reverse step is learned, how it lies between its bounds, in [0, 1]
            and in the shape of ``x_t``: 1 is the upper one, the variance ``sigma_{t|s}^2`` of the forward step (beta
            between neighbouring levels), 0 the lower one, that of the posterior, and the logarithm is linear between
            them. Unlike a variance it holds for a step from t to any s.
    """

    x0: Tensor
    variance_fraction: Tensor | None = None


class Denoiser(nn.Module, ABC):
    """The interface."""

    process: Process

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        """Estimate x0.

        Args:
            x_t: ``(B, ...)`` noisy data, float32 or float64.
            t: time in [0, 1], float32 or float64, of any prefix of the shape of ``x_t``.
            cond: what the estimate is conditioned on, by name; each ``(B, ...)``.
        """

    def begin(self) -> "Denoiser":
        """Return the denoiser to be used for one trajectory: a fresh copy if it keeps a state (hook)."""
        return self

    def select(self, index: Tensor) -> "Denoiser":
        """Return the denoiser for some examples of the batch: a copy if it keeps anything of each (hook).

        Args:
            index: ``(M,)`` which examples, in their order; one may come several times.
        """
        return self

    def prepared(self, times: Sequence[Tensor]) -> "Denoiser":
        """Return a denoiser with the same answers that has computed beforehand what depends on the time alone (hook).

        Args:
            times: the scalar tensors that it will be asked at, float32 or float64. They are recognised by identity,
                so that none has to be read from the device in between; any other time is answered as well.
        """
        return self


class Output(NamedTuple):
    """What a network says, in the dtype of ``x_t``.

    Attributes:
        prediction: F.
        variance_fraction: as in ``Prediction``, but not confined to [0, 1]; None unless it is learned.
    """

    prediction: Tensor
    variance_fraction: Tensor | None = None


class NetworkDenoiser(Denoiser):
    """A network with its process and parameterization.

    Any ``nn.Module`` with ``forward(x, c_noise, **cond)`` will do. Its dtype changes here and nowhere else:
    scales are formed in the dtype of ``t`` (at least float32), the network computes in the dtype of its parameters.

    Args:
        network: predicts F; ``x`` is ``(B, ...)``, ``c_noise`` has the shape of ``t`` broadcast to ``(B,)``.
        process: a Gaussian process.
        parameterization: what F is.
        learned_variance: whether the network answers with twice as many channels, first F and then a number r from
            which the variance fraction is ``(1 + r) / 2`` (Nichol, Dhariwal 2021, arXiv 2102.09672, eq. 15, in the
            layout of their published weights).

    Raises:
        ValueError: if the parameterization carries no information somewhere on the schedule.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterization: Parameterization,
        *,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        parameterization.check(process.schedule)
        self.network = network
        self.process = process
        self.parameterization = parameterization
        self.learned_variance = learned_variance

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the network's prediction F in the dtype of ``x_t``."""
        return self.output(x_t, t, cond).prediction

    def output(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Output:
        """Return all that the network says; arguments as for ``forward``."""
        return self._output(x_t, t, *self._scales(t), cond)

    def inputs(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network is given for ``x_t`` and t: the scaled data, and the noise level."""
        return self._inputs(x_t, t, *self._scales(t))

    def estimate(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x0 that follows from a prediction F at ``x_t`` and t."""
        return self._estimate(x_t, prediction, *self._scales(t))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        alpha_t, sigma_t = self._scales(t)
        prediction, fraction = self._output(x_t, t, alpha_t, sigma_t, cond)
        return Prediction(self._estimate(x_t, prediction, alpha_t, sigma_t), _confined(fraction))

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        parameter = next(self.network.parameters(), None)
        if not times or parameter is None:
            return self  # without parameters the network's dtype is that of the data, which is not known yet
        t = torch.stack(list(times))
        alpha_t, sigma_t = self._scales(t)
        solution, c_in = self.parameterization.solve(alpha_t, sigma_t), self.parameterization.c_in(alpha_t, sigma_t)
        scalars = torch.stack([c_in, solution.x0_skip, solution.x0_out], dim=1).tolist()
        levels = self._levels(t, alpha_t, sigma_t, parameter.dtype).unbind()
        rows = [_Row(time, level, *row) for time, level, row in zip(times, levels, scalars, strict=True)]
        return _Prepared(self, rows, parameter.dtype)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        require_precise(t)
        return self.process.schedule.scales(t)

    def _estimate(self, x_t: Tensor, prediction: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
        solution = self.parameterization.solve(alpha_t, sigma_t)
        skip, out = (align(c.to(x_t), x_t) for c in (solution.x0_skip, solution.x0_out))
        return skip * x_t + out * prediction

    def split(self, out: Tensor, x_t: Tensor) -> Output:
        """Return what the network's answer to ``x_t`` says, in the dtype of ``x_t``.

        Raises:
            ValueError: if the answer has not the channels that it should.
        """
        expected = (x_t.shape[0], x_t.shape[1] * 2, *x_t.shape[2:]) if self.learned_variance else tuple(x_t.shape)
        if out.shape != expected:
            what = "predicts and whose variance it learns" if self.learned_variance else "predicts"
            found = tuple(out.shape)
            raise ValueError(f"expected an answer of shape {expected} from a network that {what}, got {found}")
        if not self.learned_variance:
            return Output(out.to(x_t.dtype))
        prediction, number = out.to(x_t.dtype).chunk(2, dim=1)
        return Output(prediction, 0.5 + 0.5 * number)

    def _output(self, x_t: Tensor, t: Tensor, alpha_t: Tensor, sigma_t: Tensor, cond: Cond | None) -> Output:
        x, level = self._inputs(x_t, t, alpha_t, sigma_t)
        return self.split(self.network(x, level, **(cond or {})), x_t)

    def _inputs(self, x_t: Tensor, t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next(self.network.parameters(), x_t).dtype
        level = self._levels(t, alpha_t, sigma_t, dtype)
        if level.ndim == 0:
            level = level.expand(x_t.shape[0])
        c_in = self.parameterization.c_in(alpha_t, sigma_t)
        return (align(c_in.to(x_t), x_t) * x_t).to(dtype), level

    def _levels(self, t: Tensor, alpha_t: Tensor, sigma_t: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what a network of a dtype is told of the noise levels, shaped like ``t``."""
        c_noise = self.parameterization.c_noise(self.process.schedule.network_time(t), log_snr(alpha_t, sigma_t))
        # Noise levels stay in float32 or better: in bfloat16 1000 of them collapse to about 500.
        return c_noise.to(torch.float64 if dtype is torch.float64 else torch.float32)


class _Row(NamedTuple):
    """A time, what the network is told of it, and the scalars of ``x0 = skip x_t + out F(c_in x_t)``."""

    t: Tensor
    level: Tensor
    c_in: float
    skip: float
    out: float


class _Prepared(Denoiser):
    """A network denoiser that has the scalars of some times as plain numbers.

    Args:
        denoiser: answers at all other times.
        rows: one a time; they keep the tensors of the times alive, so no other tensor can take the identity of one.
        dtype: what the network computes in.
    """

    def __init__(self, denoiser: NetworkDenoiser, rows: Sequence[_Row], dtype: torch.dtype) -> None:
        super().__init__()
        self.process = denoiser.process
        self.denoiser = denoiser
        self._rows = {id(row.t): row for row in rows}
        self._dtype = dtype

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        row = self._rows.get(id(t))
        if row is None:
            answer: Prediction = self.denoiser(x_t, t, cond)
            return answer
        x = (x_t * row.c_in).to(self._dtype)
        out: Tensor = self.denoiser.network(x, row.level.expand(x_t.shape[0]), **(cond or {}))
        prediction, fraction = self.denoiser.split(out, x_t)
        return Prediction((prediction * row.out).add_(x_t, alpha=row.skip), _confined(fraction))


def _confined(fraction: Tensor | None) -> Tensor | None:
    return None if fraction is None else fraction.clamp(0.0, 1.0)
