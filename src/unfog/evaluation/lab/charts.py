"""Charts of the laboratory's page."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unfog.evaluation.lab.measure import Order, Result
from unfog.evaluation.lab.mixture import Mixture
from unfog.evaluation.svg import BASE, GRID, MUTED, SERIES, SHADE, Chart, finish, panel, plain_log_ticks
from unfog.metrics.interval import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SQUARE = (3.9, 3.9)
_MARKS = "osD^vPX*"
_LEGEND_COLUMNS = 4
_BINS = 60


class Look(NamedTuple):
    """How a sampler is drawn on every chart."""

    colour: str
    mark: str


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """Return a look for each name; after eight they begin again."""
    return {name: Look(SERIES[k % len(SERIES)], _MARKS[(k + k // len(SERIES)) % 8]) for k, name in enumerate(names)}


def path_chart(results: Sequence[Result], looks: Mapping[str, Look]) -> Chart | None:
    """Draw the distance to the exact solution against evaluations; None without a sampler that has one."""
    curves = {
        result.name: [(r.evaluations, r.path) for r in result.readings if r.path is not None] for result in results
    }
    return _scores(
        curves, looks, "path", "mean distance to the exact solution", "Path error against evaluations", floor=None
    )


def law_chart(results: Sequence[Result], looks: Mapping[str, Look], floor: Score | None) -> Chart | None:
    """Draw the sliced distance to the right law against evaluations, and what exact samples get."""
    curves = {result.name: [(r.evaluations, r.law) for r in result.readings] for result in results}
    return _scores(
        curves, looks, "law", "sliced distance to the right law", "Law error against evaluations", floor=floor
    )


def _scores(
    curves: Mapping[str, Sequence[tuple[int, Score]]],
    looks: Mapping[str, Look],
    name: str,
    what: str,
    title: str,
    floor: Score | None,
) -> Chart | None:
    curves = {sampler: points for sampler, points in curves.items() if points}
    if not curves:
        return None
    figure, axes = panel("evaluations of the denoiser", what, log=True)
    for sampler, points in curves.items():
        costs, values = [cost for cost, _ in points], [score.value for _, score in points]
        # An interval may reach zero, which a logarithmic axis does not.
        low = [max(score.low, score.value / 3) for _, score in points]
        axes.fill_between(costs, low, [s.high for _, s in points], color=looks[sampler].colour, alpha=0.14, linewidth=0)
        _line(axes, costs, values, looks[sampler], sampler)
    if floor is not None:
        axes.axhline(floor.value, color=BASE, linewidth=1.0, linestyle=(0, (4, 3)), label="exact samples")
    _evaluations_axis(axes)
    return finish(figure, name, title, columns=_LEGEND_COLUMNS)


def order_chart(kind: str, orders: Mapping[str, Order], looks: Mapping[str, Look]) -> Chart | None:
    """Draw errors of a kind on the fixed interval against evaluations, with lines of whole orders behind them."""
    orders = {name: order for name, order in orders.items() if order.of == kind and any(e > 0 for e in order.errors)}
    if not orders:
        return None
    figure, axes = panel("evaluations of the denoiser", f"error of the {kind} after the interval", log=True)
    for name, order in orders.items():
        told = [(cost, error) for cost, error in zip(order.evaluations, order.errors, strict=True) if error > 0]
        label = name if order.slope is None else f"{name}: {order.slope:.2f}"
        _line(axes, [cost for cost, _ in told], [error for _, error in told], looks[name], label)
    _evaluations_axis(axes)
    _slopes(axes)
    return finish(figure, f"order-{kind}", f"Error of the {kind} on the fixed interval against evaluations", columns=3)


def _slopes(axes: "Axes") -> None:
    """Draw lines of order 1 to 4 from the upper left corner, behind everything."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for order in (1, 2, 3, 4):
        end = high * (left / right) ** order
        stop = right if end >= low else left * (high / low) ** (1 / order)
        axes.plot([left, stop], [high, max(end, low)], color=GRID, linewidth=0.9, zorder=0)
        axes.annotate(
            str(order),
            (stop, max(end, low)),
            (3, 3),
            textcoords="offset points",
            color=MUTED,
            fontsize=7.5,
            annotation_clip=False,
        )
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)


def _line(axes: "Axes", x: Sequence[float], y: Sequence[float], look: Look, label: str) -> None:
    axes.plot(x, y, color=look.colour, marker=look.mark, linewidth=1.5, markersize=4.2, markeredgewidth=0, label=label)


def _evaluations_axis(axes: "Axes") -> None:
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis)


def trajectory_chart(
    name: str, number: int, mixture: Mixture, exact: Tensor | None, found: Tensor, look: Look, *, reach: float
) -> Chart:
    """Draw trajectories over the density of the data.

    Args:
        name: of the sampler.
        number: of the chart on its page.
        mixture: the data.
        exact: ``(times, B, 2)`` exact solutions; None for a sampler that injects noise, which solves nothing.
        found: ``(nodes, B, 2)`` the sampler's states.
        look: of the sampler.
        reach: half the side of what is shown.
    """
    figure, axes = panel("", "", size=_SQUARE)
    side = torch.linspace(-reach, reach, 141, dtype=torch.float64)
    density = _density(mixture, torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1))
    levels = [float(density.max()) * part for part in (0.02, 0.1, 0.3, 0.6, 1.0)]
    for low in levels[:-1]:
        axes.contourf(side.numpy(), side.numpy(), density.numpy(), levels=[low, math.inf], colors=[BASE], alpha=0.11)
    for k in range(found.shape[1]):
        if exact is not None:
            axes.plot(*exact[:, k].T.numpy(), color=BASE, linewidth=0.9, linestyle=(0, (3, 2)), zorder=2)
        axes.plot(
            *found[:, k].T.numpy(),
            color=look.colour,
            linewidth=1.0,
            marker="o",
            markersize=2.2,
            markeredgewidth=0,
            alpha=0.85,
            zorder=3,
        )
    axes.plot(*found[-1].T.numpy(), "o", color=look.colour, markersize=4.5, markeredgewidth=0, zorder=4)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_title(name, color=MUTED, fontsize=9.5, loc="left")
    return finish(figure, f"trajectories-{number}", f"Trajectories of {name} over the density of the data")


def _density(mixture: Mixture, points: Tensor) -> Tensor:
    """Return the density of the data at points ``(..., 2)``."""
    z = (points[..., None, :] - mixture.means) / mixture.stds
    heights = torch.exp(-0.5 * z.square().sum(-1)) / (2 * math.pi * mixture.stds.prod(-1))
    return torch.einsum("k,...k->...", mixture.weights, heights)


class Marginal(NamedTuple):
    """The states at one time along one axis.

    Attributes:
        words: where it is, for people.
        exact: ``(points, 2)`` of the exact density, or ``(N,)`` exact states where it is not known in closed form.
        found: ``(N,)`` the states of each sampler.
    """

    words: str
    exact: Tensor
    found: Mapping[str, Tensor]


def marginal_chart(marginal: Marginal, looks: Mapping[str, Look], number: int) -> Chart:
    """Draw histograms of the samplers' states over the exact density."""
    figure, axes = panel(marginal.words, "density")
    everything = torch.cat(list(marginal.found.values()))
    low, high = torch.quantile(everything, torch.tensor([0.0005, 0.9995], dtype=torch.float64)).tolist()
    margin = 0.05 * (high - low)
    edges = torch.linspace(low - margin, high + margin, _BINS + 1, dtype=torch.float64)
    if marginal.exact.ndim == 2:
        axes.fill_between(*marginal.exact.T.numpy(), color=SHADE, linewidth=0)
        axes.plot(*marginal.exact.T.numpy(), color=BASE, linewidth=1.0, label="exact")
    else:
        axes.stairs(_heights(marginal.exact, edges), edges.numpy(), fill=True, color=SHADE, label="exact")
    for name, states in marginal.found.items():
        axes.stairs(_heights(states, edges), edges.numpy(), color=looks[name].colour, linewidth=1.2, label=name)
    axes.set_xlim(edges[0].item(), edges[-1].item())
    axes.set_ylim(bottom=0)
    return finish(figure, f"marginal-{number}", f"Marginals, {marginal.words}", columns=_LEGEND_COLUMNS)


def _heights(states: Tensor, edges: Tensor) -> Sequence[float]:
    counts, _ = torch.histogram(states, edges)
    heights: list[float] = (counts / (len(states) * edges.diff())).tolist()
    return heights
