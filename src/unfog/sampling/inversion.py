"""DDIM inversion: from data to the noise that DDIM makes them of.

A step of DDIM from t to s (less noisy) is ``x_s = G(x_t) = a x_t + b x0(x_t, t)``. Its inverse wants the estimate at
x_t, which is not known yet. The published inversion takes that at x_s for it: an Euler step of the probability-flow ODE
in the other direction, with an error of its own. The equation ``G(x_t) = x_s`` can also be solved, by

    x_t  <-  x_t + (x_s - G(x_t)) / g,        g = a + b alpha_t / (alpha_t^2 + sigma_t^2),

where g is the derivative of G for Gaussian data of variance 1. For Gaussian data of any variance v the error shrinks by
``1 - g(v) / g(1)`` each time, of size below 1 for all v up to 1. The step to clean data, where a = 0, is inverted by it
too: x_t is then the point whose estimate is the data.

Sources:
    Song, Meng, Ermon 2021 (arXiv 2010.02502), section 4.3: encoding by the reversed ODE. Pan et al. 2023 (2309.04907):
    inversion as a fixed point (another iteration).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser
from unfog.sampling.sampler import Step, instants, require_finite
from unfog.sampling.table import Grid, Node, transition

_DEPTH = 3
"""How many changes the acceleration combines."""
_RIDGE = 1e-12


def invert(denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, iterations: int = 0) -> Tensor:
    """Return the noise of data at ``times[0]``, ``(B, ...)``; the arguments are those of ``inversion_steps``.

    Raises:
        FloatingPointError: if it is not finite; the message names the samples.
    """
    *_, last = inversion_steps(denoiser, x, times, cond, iterations=iterations)
    require_finite(last.x)
    return last.x


def inversion_steps(
    denoiser: Denoiser, x: Tensor, times: Tensor, cond: Cond | None = None, *, iterations: int = 0
) -> Iterator[Step]:
    """Run DDIM backwards, from data to noise.

    Args:
        denoiser: estimates x0.
        x: ``(B, ...)`` the state at ``times[-1]``: data, where that is 0.
        times: ``(N + 1,)`` times that fall strictly, from a ``grid``: those of the DDIM to be inverted.
        cond: the condition, by name, each ``(B, ...)``.
        iterations: corrections a step, an evaluation each; 0 is the published inversion, and with ten or twenty it is a
            round trip with DDIM, to rounding errors.

    Yields:
        A ``Step`` for each step of the grid, from its end to its start, ``1 + iterations`` evaluations each. Its ``t``
        is that of the noisier end.
    """
    require(iterations >= 0, f"iterations of at least 0, not {iterations}")
    grid = Grid.of(denoiser.process.schedule, times)
    ask = instants([node.t for node in grid], x.device).unbind()
    prepared = denoiser.begin().prepared(ask)

    def estimate(state: Tensor, time: Tensor) -> Tensor:
        x0: Tensor = prepared(state, time, cond).x0
        return x0

    for k in range(grid.steps - 1, -1, -1):
        t, s = grid[k], grid[k + 1]
        x_s = x
        if s.sigma > 0:
            x0 = estimate(x_s, ask[k + 1])
            x = (t.sigma / s.sigma) * x_s + (t.alpha - t.sigma * s.alpha / s.sigma) * x0
        else:
            # Clean data hold no noise to begin with: it is what the noisier end finds in them.
            x = (t.alpha / s.alpha) * x_s
            x0 = estimate(x, ask[k])
            x = 2.0 * x - t.alpha * x0
        if iterations:
            x, x0 = _solved(partial(estimate, time=ask[k]), x, x_s, t, s, iterations)
        yield Step(grid.steps - 1 - k, ask[k], x, x0, (grid.steps - k) / grid.steps)


def _solved(
    estimate: Callable[[Tensor], Tensor], x: Tensor, x_s: Tensor, t: Node, s: Node, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the state from which DDIM's step leads to ``x_s``, and the last estimate asked for.

    Args:
        estimate: x0 at t.
        x: a guess.
        x_s: where the step should lead.
        t: where the state is.
        s: where the step leads.
        iterations: how often to ask.
    """
    move = transition(t, s)
    a, b = move.x, move.x0[0]
    slope = a + b * t.alpha / (t.alpha**2 + t.sigma**2)
    require(slope > 0, "more steps: one from pure noise to clean data forgets the noise, and has no inverse")
    past = list[tuple[Tensor, Tensor]]()
    x0 = x
    for _ in range(iterations):
        x0 = estimate(x)
        change = (x_s - a * x - b * x0) / slope
        following = x + change
        past = [*past[-_DEPTH:], (following, change)]
        x = _accelerated(past)
    return x, x0


def _accelerated(past: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the combination of the latest iterates whose changes, so combined, are least (Anderson acceleration)."""
    following, change = past[-1]
    if len(past) == 1:
        return following
    steps = [torch.stack([new[i] - old[i] for old, new in pairwise(past)], dim=1).flatten(2) for i in (0, 1)]
    # Normal equations of few unknowns for each example, in float64; near the solution differences have no direction.
    rows = steps[1].double()
    gram = rows @ rows.mT
    trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    ridge = _RIDGE * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    right = (rows @ change.double().flatten(1)[..., None]) / trace[:, None, None]
    weights = torch.linalg.solve(gram / trace[:, None, None] + ridge, right)
    step: Tensor = steps[0].mT @ weights.to(following)
    return following - step.reshape(following.shape)
