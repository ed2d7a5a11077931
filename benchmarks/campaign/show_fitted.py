"""What the records of fitted samplers say, as Markdown and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign.jobs import FITTED_STEPS, FITTED_TO, FitSampler
from unfog.evaluation.card import require_alike
from unfog.evaluation.pictures import COLOURS, dress, legend_above, panels, save

Record = Mapping[str, Any]
AIMS = {4: 0.6, 6: 0.6, 8: 1.0, 10: 1.0}
"""The ratio of distances that is aimed at, by evaluations."""


def overview(records: Mapping[str, Record], picture: Path, shown_as: Path) -> list[str]:
    """Return a row for each recipe and number of evaluations, what the columns mean, and the curves.

    Args:
        records: by the names of their jobs.
        picture: file that is drawn.
        shown_as: its path, as the page names it.
    """
    found = {recipe: _of(recipe, records) for recipe in FITTED_TO if _of(recipe, records)}
    if not found:
        return []
    lines: list[str] = []
    # Distances in the features of different networks do not stand in one table.
    for recipe, fits in found.items():
        conditions = {
            f"{recipe}, {fit['measured']['row']['evaluations']} evaluations": {
                key: fit["measured"][key] for key in ("features", "samples")
            }
            for fit in fits
        }
        require_alike(conditions)
        lines += [
            "| recipe | evaluations | best fixed sampler | its distance | fitted | ratio | aimed at | "
            "Fréchet distance, fixed | fitted | ratio | processor time of the fit |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(_row(recipe, fit["measured"]["row"]) for fit in fits),
            "",
        ]
    draw(found, picture)
    return [
        *lines,
        "Distance to the model's own accurate solution: root mean square over the pixels (black to white is 2), mean "
        "over noises that took no part in the fit, the same for both; 95 % interval of the ratio. Squared Fréchet "
        "distance (own features, not FID) to the accurate samples. The best fixed sampler is the nearest of all "
        "deterministic tables of the library on all grids. "
        + " ".join(_told(recipe, fits[0]["measured"]) for recipe, fits in found.items())
        + f" {_circumstances(found)}",
        "",
        f"![Distance to the accurate solution against evaluations]({shown_as})",
        "",
        "*Solid: fitted to the model; dashed: the best fixed sampler for that number of evaluations.*",
    ]


def draw(found: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Draw the distances against evaluations, two lines a recipe."""
    figure, [[axes]] = panels(1, 1, panel=(6.4, 3.6))
    dress(axes, "evaluations of the network", "distance to the accurate solution")
    for (recipe, fits), colour in zip(found.items(), COLOURS, strict=False):
        rows = [fit["measured"]["row"] for fit in fits]
        evaluations = [row["evaluations"] for row in rows]
        for key, style, name in (("fixed_distance", "--", "best fixed"), ("distance", "-", "fitted")):
            values = [row[key]["value"] for row in rows]
            errors = [[row[key]["value"] - row[key]["low"] for row in rows]]
            errors.append([row[key]["high"] - row[key]["value"] for row in rows])
            axes.errorbar(
                evaluations, values, errors, color=colour, linestyle=style, marker="o", label=f"{recipe}, {name}"
            )
    axes.set_xticks(FITTED_STEPS)
    axes.set_yscale("log")
    legend_above(figure, [axes])
    save(figure, path)


def _of(recipe: str, records: Mapping[str, Record]) -> list[Record]:
    """Return the records of a recipe's fits, by number of evaluations."""
    names = [FitSampler(recipe, evaluations).id for evaluations in FITTED_STEPS]
    return [records[name] for name in names if name in records]


def _row(recipe: str, row: Record) -> str:
    ratio, aim = row["ratio"], AIMS.get(row["evaluations"])
    told = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    reached = "" if aim is None else f"{aim:g}: {'reached' if ratio['value'] <= aim else 'not reached'}"
    return (
        f"| `{recipe}` | {row['evaluations']} | {row['fixed']} | {row['fixed_distance']['value']:.4f} | "
        f"{row['distance']['value']:.4f} | **{told}** | {reached} | {row['fixed_frechet']:.3f} | "
        f"{row['frechet']:.3f} | {row['frechet'] / row['fixed_frechet']:.2f} | {row['cpu_seconds'] / 60:.1f} min |"
    )


def _told(recipe: str, measured: Record) -> str:
    error = measured["accurate"]["error"]["value"]
    return (
        f"`{recipe}`: {measured['samples']} noises; accurate solution by {measured['accurate']['settings']}, "
        f"{error:.4f} from that of half the steps; weights `{measured['run']['weights']}` of step "
        f"{measured['run']['step']}; features `{measured['features']}`."
    )


def _circumstances(found: Mapping[str, Sequence[Record]]) -> str:
    every = [fit for fits in found.values() for fit in fits]
    machines = {
        f"{m['processor']}, {len(m['pinned_to'])} of {m['cores']} cores, {m['threads']} threads, accelerator: "
        f"{m['accelerator']}, load at the start {m['load_at_start'][0]:.1f}, torch {record['versions']['torch']}, "
        f"{record['started'][:10]}"
        for record in every
        for m in [record["machine"]]
    }
    minutes = [fit["measured"]["row"]["cpu_seconds"] / 60 for fit in every]
    return (
        f"The fits took {min(minutes):.1f} to {max(minutes):.1f} min of processor time. {'; '.join(sorted(machines))}."
    )
