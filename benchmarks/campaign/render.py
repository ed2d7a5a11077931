"""Writes README.md, docs/results.md and their pictures from the records; nothing is measured here."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.campaign import show_bits, show_classifiers, show_equal, show_families, show_fitted, show_recipes
from benchmarks.campaign.jobs import SEEDS, Bits, Classifier, FamilyRace, FitSampler, Job, Trained
from benchmarks.campaign.pictures import draw_losses, draw_samples
from benchmarks.campaign.queue import missing
from benchmarks.campaign.record import Places, read_record
from benchmarks.campaign.show_equal import Campaign, Outcome
from benchmarks.pages import insert

COMMAND = "make campaign"
RESULTS, README = Path("docs", "results.md"), Path("README.md")
LOSSES, SAMPLES = Path("images", "equal-time-losses.png"), Path("images", "equal-time-samples.png")
BITS = Path("images", "bits-per-dimension.png")
FITTED = Path("images", "fitted-samplers.png")
FAMILIES = Path("images")


def render(jobs: Sequence[Job], places: Places, pages: Path) -> None:
    """Write what the records say between the markers of the pages; the rest of the pages stays.

    Args:
        jobs: all that there are.
        places: where the records lie.
        pages: folder that holds ``README.md`` and ``docs/results.md``.

    Raises:
        ValueError: if a record cannot be read, records do not belong together, or a page lacks its markers.
    """
    absent = missing(jobs, places)
    records = {job.id: read_record(places.record(job.id)) for job in jobs if job not in absent}
    trained, campaign = show_recipes.trainings(records), Campaign.of(records)
    recipes, equal = show_recipes.overview(trained), show_equal.summary(campaign)
    lines = ["## Recipes", "", *recipes, ""]
    lines += [*_lacking([job for job in absent if isinstance(job, Trained)]), ""]
    for one in trained:
        lines += show_recipes.details(one)
    lines += ["## Classifiers of noisy data", "", *show_classifiers.overview(records)]
    lines += [*_lacking([job for job in absent if isinstance(job, Classifier)]), ""]
    lines += ["## Bits per dimension", "", *show_bits.overview(records, pages / "docs" / BITS, BITS), ""]
    lines += [*_lacking([job for job in absent if isinstance(job, Bits)]), ""]
    lines += ["## Fitted samplers", "", *show_fitted.overview(records, pages / "docs" / FITTED, FITTED), ""]
    lines += [*_lacking([job for job in absent if isinstance(job, FitSampler)]), ""]
    lines += ["## Families of models", "", *show_families.overview(records, pages / "docs" / FAMILIES, FAMILIES), ""]
    lines += [*_lacking([job for job in absent if isinstance(job, FamilyRace)]), ""]
    lines += ["## Equal time", "", *equal, ""]
    shown = Trained | Classifier | Bits | FitSampler | FamilyRace
    lines += _lacking([job for job in absent if not isinstance(job, shown)])
    lines += ["", *_pictures(campaign, places.records, pages / "docs"), *show_equal.details(campaign)]
    insert(pages / RESULTS, lines, COMMAND)
    rest = [f"{len(absent)} of the {len(jobs)} planned measurements are still missing."] if absent else []
    front = ["### Recipes", "", *recipes, "", "### Beside other libraries", "", *equal, "", *rest]
    insert(pages / README, front, COMMAND)


def _lacking(absent: Sequence[Job]) -> list[str]:
    if not absent:
        return []
    minutes = sum(job.minutes for job in absent)
    names = ", ".join(f"`{job.id}`" for job in absent)
    return [f"Missing, about {minutes / 60:.1f} hours on one core with `make campaign`: {names}."]


def _pictures(campaign: Campaign, records: Path, docs: Path) -> list[str]:
    """Draw what there is, and return the lines that show it."""
    lines = []
    if campaign.outcomes:
        draw_losses(campaign, docs / LOSSES)
        lines += [
            f"![Training loss against wall time, one panel a system]({LOSSES})",
            "",
            "*Each system minimises a loss of its own, so heights compare within a panel only; a line is a seed.*",
            "",
        ]
    if shown := _first_scored(campaign):
        draw_samples(shown, records, docs / SAMPLES)
        lines += [
            f"![Samples of each system after equal time]({SAMPLES})",
            "",
            f"*The first hundred samples of seed {shown[0].seed}, not selected.*",
            "",
        ]
    return lines


def _first_scored(campaign: Campaign) -> list[Outcome]:
    """Return the outcomes of the first seed that most systems were scored with."""
    seeds = [[one for one in campaign.outcomes if one.seed == seed and one.scored] for seed in SEEDS]
    return max(seeds, key=len)
