"""The laboratory's page: one HTML file of plots and tables with everything inside."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.checkpoint import write_atomically
from unfog.evaluation import tables
from unfog.evaluation.lab import charts
from unfog.evaluation.lab.charts import Look, Marginal
from unfog.evaluation.lab.law import directions
from unfog.evaluation.lab.measure import INTERVAL, Laboratory, Order, Reading, Result
from unfog.evaluation.svg import Chart
from unfog.evaluation.template import filled
from unfog.sampling.sampler import Step

SECTIONS = {
    "run": "What was run",
    "path": "Error of the path",
    "order": "Order of convergence",
    "law": "Error of the law",
    "trajectories": "Trajectories",
    "marginals": "Marginals",
    "cost": "Cost",
    "method": "How it was measured",
}
"""Sections of the page in their order: identifier and title."""

_TRAJECTORIES = 14
_NOISY_TRAJECTORIES = 5
_POINTS = 49
_SHOWN_SAMPLERS = 8


@dataclass(frozen=True)
class PageInputs:
    """What a page tells of.

    Attributes:
        title: of the page.
        command: that asked for it, as it was typed.
        facts: of the setup, by name.
        laboratory: where the samplers were run.
        results: of each sampler; names differ.
        shown: steps of the trajectories and marginals.
    """

    title: str
    command: str
    facts: Mapping[str, str]
    laboratory: Laboratory
    results: Sequence[Result]
    shown: int


class Line(NamedTuple):
    """A row of a table: the sampler, the steps, and cells as they are read."""

    sampler: str
    steps: str
    cells: tuple[str, ...]


def write_page(path: Path, inputs: PageInputs) -> None:
    """Draw the charts and write the page, whole or not at all; a file of that name is replaced."""
    write_atomically(path, render(inputs).encode())


def render(inputs: PageInputs) -> str:
    """Return the page."""
    results = inputs.results
    looks = charts.looks_of([result.name for result in results])
    floor = inputs.laboratory.floor()
    orders = {result.name: result.order for result in results if result.order is not None}
    by_kind = [charts.order_chart(kind, orders, looks) for kind in ("path", "variance")]
    context = {
        "inputs": inputs,
        "setup": inputs.laboratory.setup,
        "sections": SECTIONS,
        "interval": [f"{end:g}".replace("-", "−") for end in INTERVAL],
        "path": _drawn(charts.path_chart(results, looks)),
        "path_rows": list(_path_rows(results)),
        "orders": _drawn(*by_kind),
        "order_rows": [_order_row(name, order) for name, order in orders.items()],
        "law": _drawn(charts.law_chart(results, looks, floor)),
        "floor": None if floor is None else tables.spoken(floor),
        "law_rows": list(_law_rows(results)),
        "trajectories": _trajectories(inputs, looks),
        "marginals": _marginals(inputs, looks),
        "cost_rows": list(_cost_rows(results)),
        "refusals": [(result.name, refusal) for result in results for refusal in result.refusals],
    }
    return filled("lab.html.j2", context)


def told(value: float | None) -> str:
    """Return an error in three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def told_order(order: Order) -> str:
    """Return a measured order with its standard error."""
    if order.slope is None:
        return "not measurable: errors as small as those of the exact solution"
    return f"{order.slope:.2f}" if order.spread is None else f"{order.slope:.2f} ± {order.spread:.2f}"


def _drawn(*found: Chart | None) -> list[Chart]:
    return [chart for chart in found if chart is not None]


def _readings(results: Sequence[Result]) -> Iterator[tuple[Result, Reading]]:
    for result in results:
        for reading in result.readings:
            yield result, reading


def _path_rows(results: Sequence[Result]) -> Iterator[Line]:
    for result, reading in _readings(results):
        if reading.path is not None:
            cells = (str(reading.evaluations), *tables.rounded(reading.path), told(reading.jump))
            yield Line(result.name, str(reading.steps), cells)


def _law_rows(results: Sequence[Result]) -> Iterator[Line]:
    for result, reading in _readings(results):
        cells = (str(reading.evaluations), *tables.rounded(reading.law))
        yield Line(result.name, str(reading.steps), cells)


def _cost_rows(results: Sequence[Result]) -> Iterator[Line]:
    for result, reading in _readings(results):
        each = 1e6 * reading.seconds / reading.law.count
        cells = (str(reading.evaluations), f"{reading.evaluations / reading.steps:.3g}", f"{each:.3g}")
        yield Line(result.name, str(reading.steps), cells)


def _order_row(name: str, order: Order) -> Line:
    claimed = "none" if order.claimed is None else str(order.claimed)
    errors = [f"{error:.2g} ({cost})" for cost, error in zip(order.evaluations, order.errors, strict=True)]
    return Line(name, claimed, (told_order(order), order.of, ", ".join(errors)))


def _shown(inputs: PageInputs) -> Iterator[tuple[Result, list[Step]]]:
    """Yield the steps of each sampler at the shown number of steps, unless it refuses it."""
    laboratory = inputs.laboratory
    times = laboratory.times(inputs.shown)
    for result in inputs.results[:_SHOWN_SAMPLERS]:
        try:
            run = laboratory.run(result.sampler, times, laboratory.setup.prior(laboratory.setup.samples))
        except (ValueError, FloatingPointError):
            continue  # the page tells of what was refused where it tells of the numbers
        yield result, run.steps


def _at_nodes(steps: Sequence[Step], times: Tensor, start: Tensor) -> dict[float, Tensor]:
    """Return the states at the times of the grid; of several at one time (a look ahead, then a step) the last."""
    nodes, states = set(times.tolist()), {times[0].item(): start}
    states.update({step.t.item(): step.x for step in steps if step.t.item() in nodes})
    return states


def _trajectories(inputs: PageInputs, looks: Mapping[str, Look]) -> list[Chart]:
    laboratory = inputs.laboratory
    setup = laboratory.setup
    times, prior = laboratory.times(inputs.shown), setup.prior(setup.samples)
    # Evenly in flow time, so that the curve is smooth where it bends.
    first = setup.schedule.scales(times[[0]])
    flow = torch.linspace(1.0, 0.0, _POINTS, dtype=torch.float64) * (first[1] / (first[0] + first[1]))
    fine = setup.schedule.time(2.0 * (torch.log1p(-flow) - flow.log())).tolist()
    fine[0], fine[-1] = times[0].item(), times[-1].item()
    exact = setup.field.curve(setup.schedule, prior[:_TRAJECTORIES], fine)
    mixture = setup.field.mixture
    reach = max(2.4, 1.15 * float((mixture.means.abs() + 2.5 * mixture.stds).max()))
    drawn = []
    curve = _of_unit_size(inputs, exact, fine)
    for number, (result, steps) in enumerate(_shown(inputs)):
        states = _at_nodes(steps, times, prior)
        found = _of_unit_size(inputs, torch.stack(list(states.values())), list(states))
        # Paths with noise cross each other: a few are enough.
        shown, solution = (found[:, :_NOISY_TRAJECTORIES], None) if result.noisy else (found[:, :_TRAJECTORIES], curve)
        look = looks[result.name]
        drawn.append(charts.trajectory_chart(result.name, number, mixture, solution, shown, look, reach=reach))
    return drawn


def _of_unit_size(inputs: PageInputs, x: Tensor, times: Sequence[float]) -> Tensor:
    """Return states ``(times, B, 2)`` divided by ``sqrt(alpha^2 + sigma^2)``, which fit one picture at all times."""
    alpha, sigma = inputs.laboratory.setup.schedule.scales(torch.tensor(list(times), dtype=torch.float64))
    return x / torch.hypot(alpha, sigma)[:, None, None]


def _marginals(inputs: PageInputs, looks: Mapping[str, Look]) -> list[Chart]:
    laboratory = inputs.laboratory
    times = laboratory.times(inputs.shown)
    prior = laboratory.setup.prior(laboratory.setup.samples)
    found = {result.name: _at_nodes(steps, times, prior) for result, steps in _shown(inputs)}
    chosen = sorted({round(part * (len(times) - 1)) for part in (0.5, 0.8, 0.95, 1.0)} - {0})
    if not found or not chosen:
        return []
    moments = [times[k].item() for k in chosen]
    axis = directions()[0]
    return [
        charts.marginal_chart(
            Marginal(
                _where(inputs, t),
                _exact_marginal(inputs, t, moments),
                {name: states[t] @ axis for name, states in found.items() if t in states},
            ),
            looks,
            number,
        )
        for number, t in enumerate(moments)
    ]


def _exact_marginal(inputs: PageInputs, t: float, moments: Sequence[float]) -> Tensor:
    laboratory = inputs.laboratory
    setup, axis = laboratory.setup, directions()[0]
    if setup.field.guidance is not None:
        start = laboratory.times(inputs.shown)[0].item()
        curve = setup.field.curve(setup.schedule, setup.prior(setup.samples), (start, *moments))
        return curve[1 + list(moments).index(t)] @ axis
    alpha, sigma = (scale.item() for scale in setup.schedule.scales(torch.tensor(t, dtype=torch.float64)))
    mixture = setup.field.mixture
    reach = alpha * float((mixture.means[:, 0].abs() + 4 * mixture.stds[:, 0]).max()) + 4 * sigma
    x = torch.linspace(-reach, reach, 301, dtype=torch.float64)
    return torch.stack([x, mixture.density(axis, x, alpha, sigma)], dim=1)


def _where(inputs: PageInputs, t: float) -> str:
    log_snr = inputs.laboratory.setup.schedule.log_snr(torch.tensor(t, dtype=torch.float64)).item()
    return f"first coordinate at t = {t:.3g}, log-SNR {'∞' if math.isinf(log_snr) else f'{log_snr:.2g}'}"
