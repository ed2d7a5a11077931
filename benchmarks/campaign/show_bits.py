"""What the records of bits per dimension say, as Markdown and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.campaign.jobs import MEASURED_IN_BITS, Bits, Measure
from unfog.evaluation.pictures import COLOURS, dress, legend_above, panels, save

Record = Mapping[str, Any]
METHODS = {
    "continuous time": "variational bound, continuous time",
    "posterior variance": "variational bound, {steps} steps, posterior variance",
    "beta variance": "variational bound, {steps} steps, beta variance",
    "learned variance": "variational bound, {steps} steps, learned variance",
}


def overview(records: Mapping[str, Record], picture: Path, shown_as: Path) -> list[str]:
    """Return a row for each recipe and method, what the columns mean, and the curves.

    Args:
        records: by the names of their jobs.
        picture: file that is drawn.
        shown_as: its path, as the page names it.
    """
    found = {recipe: records[Bits(recipe).id] for recipe in MEASURED_IN_BITS if Bits(recipe).id in records}
    if not found:
        return []
    lines = [
        "| recipe | method | bits per dimension | prior | diffusion | reconstruction | test images | seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, record in found.items():
        lines += _rows(recipe, record["measured"])
        exact = records.get(Bits(recipe, Measure.ODE).id)
        if exact is not None:
            lines.append(_row(recipe, exact["measured"]))
    draw(found, picture)
    return [
        *lines,
        "",
        f"Upper bounds on the negative log-likelihood of 8-bit test images, {_given(found)}, with the 95 % interval "
        "over images; the three parts add up to the bound. The probability-flow ODE gives the model's own density of "
        "images to which noise uniform over a level was added, the trace by one random probe an image. A "
        "chain's last step leads to clean data; in continuous time "
        f"the bound begins where noise is half a bin wide. {_circumstances(found)}",
        "",
        f"![Where the bits go, by log-SNR]({shown_as})",
        "",
        "*The bound in continuous time: bits per dimension for a unit of log-SNR, from data on the left to noise on "
        "the right; the area below a curve is its term of diffusion.*",
    ]


def draw(found: Mapping[str, Record], path: Path) -> None:
    """Draw the term of diffusion in continuous time by log-SNR, a line a recipe."""
    figure, [[axes]] = panels(1, 1, panel=(6.4, 3.4))
    dress(axes, "log-SNR", "bits per dimension and unit of log-SNR")
    for (recipe, record), colour in zip(found.items(), COLOURS, strict=False):
        (bound,) = (one for one in record["measured"]["bounds"] if one["steps"] is None)
        curve = bound["curve"]
        values, errors = curve["terms"]["values"], curve["terms"]["errors"]
        low = [value - 1.96 * error for value, error in zip(values, errors, strict=True)]
        high = [value + 1.96 * error for value, error in zip(values, errors, strict=True)]
        axes.fill_between(curve["log_snr"], low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(curve["log_snr"], values, color=colour, linewidth=1.6, label=recipe)
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    legend_above(figure, [axes])
    save(figure, path)


def _rows(recipe: str, measured: Record) -> list[str]:
    return [
        f"| `{recipe}` | {METHODS[bound['method']].format(steps=bound['steps'])} | {_score(bound['total'])} | "
        f"{_value(bound['prior'])} | {_value(bound['diffusion'])} | {_value(bound['reconstruction'])} | "
        f"{measured['count']} | {measured['seed']} |"
        for bound in measured["bounds"]
    ]


def _row(recipe: str, measured: Record) -> str:
    return (
        f"| `{recipe}` | probability-flow ODE, {measured['evaluations']:.0f} evaluations an image | "
        f"{_score(measured['bits'])} | | | | {measured['count']} | {measured['effort']['seed']} |"
    )


def _score(score: Mapping[str, float]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _value(score: Mapping[str, float]) -> str:
    value = score["value"]
    return f"{value:.3f}" if value == 0 or value >= 0.0005 else f"{value:.1e}"


def _given(found: Mapping[str, Record]) -> str:
    conditions: set[str] = set()
    for record in found.values():
        conditions |= set(record["measured"]["conditions"])
    return f"given their {' and '.join(sorted(conditions))}" if conditions else "without conditions"


def _circumstances(found: Mapping[str, Record]) -> str:
    told = {
        f"`{recipe}`: {record['measured']['draws']} times for each image and row, "
        f"{record['measured']['seconds'] / 60:.1f} min in all"
        for recipe, record in found.items()
    }
    machines = {
        f"{m['processor']}, {m['threads']} threads, accelerator: {m['accelerator']}, torch {m['torch']}, {m['date']}"
        for m in (record["measured"]["machine"] for record in found.values())
    }
    return f"{'; '.join(sorted(told))}. {'; '.join(sorted(machines))}."
