"""What the records of equal wall-clock time say, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.campaign.jobs import PEERS, SEEDS, Check, Equal, Floor, Scored, System
from benchmarks.campaign.ratio import Distance, Interval, over_samples, over_seeds
from benchmarks.campaign.show_recipes import number, pooled, spread
from unfog.evaluation.card import IncomparableError, require_alike

NAMES = {
    System.UNFOG: "Unfog",
    System.DIFFUSERS: "diffusers",
    System.DDPM_PYTORCH: "denoising-diffusion-pytorch",
}
GOAL = 0.7
"""Largest ratio of our distance to a peer's that was aimed at; its interval is to lie below 1."""
MEASURES = ("precision", "recall", "density", "coverage")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One system trained with one seed, and its score if there is one yet.

    Attributes:
        system: whose.
        seed: of training and sampling.
        trained: record of the training.
        scored: record of the score.
    """

    system: System
    seed: int
    trained: Record
    scored: Record | None

    @property
    def training(self) -> Record:
        """What was measured of the training."""
        measured: Record = self.trained["measured"]
        return measured

    @property
    def best(self) -> Record:
        """The score of the sampler that counts: the system's best."""
        assert self.scored is not None
        measured = self.scored["measured"]
        score: Record = measured["samplers"][measured["counts"]]
        return score

    @property
    def distance(self) -> Distance:
        """The distance of the sampler that counts."""
        return _distance(self.best)


@dataclass(frozen=True)
class Campaign:
    """All that was done in equal time, made with equal effort.

    Attributes:
        outcomes: by seed, the systems in turn.
        floor: record of real images in the place of samples.
        checks: records of the peers' ancestral samplers, by system.
    """

    outcomes: tuple[Outcome, ...]
    floor: Record | None
    checks: Mapping[System, Record]

    @staticmethod
    def of(records: Mapping[str, Record]) -> "Campaign":
        """Gather the records.

        Raises:
            ValueError: if they were not made with equal effort.
        """
        outcomes = tuple(
            Outcome(system, seed, records[job], records.get(Scored(system, seed).id))
            for seed in SEEDS
            for system in System
            if (job := Equal(system, seed).id) in records
        )
        checks = {system: records[Check(system).id] for system in PEERS if Check(system).id in records}
        campaign = Campaign(outcomes, records.get(Floor().id), checks)
        _require_alike("budget_seconds", (one.training for one in outcomes))
        _require_alike("settings", *((one.training for one in campaign.by(system)) for system in System))
        scores = [one.scored for one in outcomes] + ([campaign.floor] if outcomes else [])
        for key in ("samples", "features", "test_images"):
            _require_alike(key, (score["measured"] for score in scores if score))
        return campaign

    def by(self, system: System) -> list[Outcome]:
        """Return what a system did."""
        return [one for one in self.outcomes if one.system is system]

    def scored(self, system: System) -> list[Outcome]:
        """Return what of a system has been scored."""
        return [one for one in self.by(system) if one.scored]

    def pairs(self, peer: System) -> tuple[list[Outcome], list[Outcome]]:
        """Return our outcomes and a peer's of the seeds that both were scored with."""
        theirs = {one.seed: one for one in self.scored(peer)}
        ours = [one for one in self.scored(System.UNFOG) if one.seed in theirs]
        return ours, [theirs[one.seed] for one in ours]


def summary(campaign: Campaign) -> list[str]:
    """Return the distances and their ratios, as far as there are any."""
    if not any(one.scored for one in campaign.outcomes):
        return []
    trained = campaign.outcomes[0].training
    scored = next(one.scored["measured"] for one in campaign.outcomes if one.scored)
    lines = [
        f"{_minutes(trained['budget_seconds'])} of training on MNIST without labels, each system with its own "
        f"defaults and a network of the same size within 5 %, {_pinning(campaign)}. Squared Fréchet distance (own "
        f"features, not FID) of {scored['samples']} samples to the {scored['test_images']} test images; smaller is "
        "better.",
        "",
        "| system | seeds | distance | ours over it | over seeds, Student's t | over samples, bootstrap |",
        "|---|---|---|---|---|---|",
    ]
    for system in System:
        if done := campaign.scored(system):
            seeds = ", ".join(str(one.seed) for one in done)
            distances = spread([one.distance.value for one in done], "{:.3f}")
            lines.append(f"| {_versioned(done[0])} | {seeds} | {distances} | {_ratios(campaign, system)} |")
    if campaign.floor:
        floor = campaign.floor["measured"]
        lines.append(f"| as many real images | | {floor['frechet']:.3f} | | | |")
    return [*lines, "", f"{SPREAD} {_verdict(campaign)}"]


SPREAD = (
    "Several seeds: mean ± standard deviation; the ratio is the geometric mean over the seeds that both have, with "
    "95 % intervals."
)


def details(campaign: Campaign) -> list[str]:
    """Return everything else that the records say."""
    if not campaign.outcomes:
        return []
    lines = [*_trainings(campaign), "", *_samplers(campaign), ""]
    if campaign.checks:
        lines += [*_checks(campaign.checks), ""]
    return [*lines, *_settings(campaign), "", *_circumstances(campaign), ""]


def _ratios(campaign: Campaign, system: System) -> str:
    ours, theirs = campaign.pairs(system)
    if system is System.UNFOG or not ours:
        return "| |"
    samples = over_samples([one.distance for one in ours], [one.distance for one in theirs])
    seeds = "one seed" if len(ours) == 1 else _range(_over_seeds(ours, theirs))
    return f"**{samples.value:.2f}** | {seeds} | {_range(samples)}"


def _over_seeds(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Interval:
    return over_seeds([one.distance.value for one in ours], [one.distance.value for one in theirs])


def _verdict(campaign: Campaign) -> str:
    """Say how the goal stands, from the numbers alone."""
    aim = f"Aimed at: at least {100 * (1 - GOAL):.0f} % below each peer, with an interval over seeds below 1."
    said = []
    for peer in PEERS:
        ours, theirs = campaign.pairs(peer)
        if len(ours) < 2:
            said.append(f"{NAMES[peer]}: open, {len(ours)} of {len(SEEDS)} seeds")
            continue
        ratio = _over_seeds(ours, theirs)
        reached = "reached" if ratio.value <= GOAL and ratio.high < 1 else "not reached"
        some = "" if len(ours) == len(SEEDS) else f", with {len(ours)} of {len(SEEDS)} seeds"
        said.append(f"{NAMES[peer]}: {reached}{some}")
    return f"{aim} {'; '.join(said)}."


def _trainings(campaign: Campaign) -> list[str]:
    lines = [
        "| system | seed | distance, over samples | steps | examples | examples/s | processor time |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in campaign.outcomes:
        run = one.training
        distance = _with_range(one.distance.interval()) if one.scored else "not scored yet"
        lines.append(
            f"| {NAMES[one.system]} | {one.seed} | {distance} | {run['steps']} | {run['examples']} | "
            f"{run['examples_per_second']:.1f} | {_processor_time(one):.1f} % |"
        )
    return [
        *lines,
        "",
        "Processor time: of the cores and the wall time that were given; what is short of 100 % went to others.",
    ]


def _processor_time(one: Outcome) -> float:
    return float(100 * one.training["cpu_seconds"] / one.training["seconds"] / one.trained["machine"]["threads"])


def _samplers(campaign: Campaign) -> list[str]:
    lines = [
        "| system | sampler | distance | precision | recall | density | coverage | counts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for system in System:
        done = [one.scored["measured"] for one in campaign.scored(system) if one.scored]
        for name in done[0]["samplers"] if done else ():
            scores = [measured["samplers"][name] for measured in done]
            counts = sum(measured["counts"] == name for measured in done)
            lines.append(
                f"| {NAMES[system]} | {scores[0]['settings']} | {spread([s['frechet'] for s in scores], '{:.3f}')} | "
                f"{_measures(scores)} | {counts} of {len(done)} |"
            )
    if campaign.floor:
        floor = campaign.floor["measured"]
        lines.append(f"| as many real images | | {_with_range(_distance(floor).interval())} | {_measures([floor])} | |")
    return [*lines, "", "Of several samplers the one with the smaller distance counts, for each seed by itself."]


def _measures(scores: Sequence[Record]) -> str:
    return " | ".join(pooled([score[name] for score in scores], number) for name in MEASURES)


def _checks(checks: Mapping[System, Record]) -> list[str]:
    """Return what a peer's fast sampler costs in quality beside its ancestral one, on the same weights."""
    lines = ["| system | sampler | evaluations | samples | distance |", "|---|---|---|---|---|"]
    for system, record in checks.items():
        measured = record["measured"]
        for name, score in measured["samplers"].items():
            distance = _with_range(_distance(score).interval())
            lines.append(f"| {NAMES[system]} | {name} | {score['evaluations']} | {measured['samples']} | {distance} |")
    return ["The peers' fast and ancestral samplers on the same weights, seed 0:", "", *lines]


def _settings(campaign: Campaign) -> list[str]:
    done = [outcomes[0] for system in System if (outcomes := campaign.by(system))]
    lines = [
        f"| | {' | '.join(_versioned(one) for one in done)} |",
        f"|---|{'---|' * len(done)}",
        f"| parameters | {' | '.join(format(one.training['parameters'], ',') for one in done)} |",
    ]
    rows = done[0].training["settings"]
    return lines + [f"| {name} | {' | '.join(one.training['settings'][name] for one in done)} |" for name in rows]


def _circumstances(campaign: Campaign) -> list[str]:
    """Return when, on what and beside what the records were made."""
    lines = [
        "| job | began (UTC) | core | threads | load at start | commit | sources |",
        "|---|---|---|---|---|---|---|",
    ]
    records = [record for one in campaign.outcomes for record in (one.trained, one.scored) if record]
    records += [record for record in (campaign.floor, *campaign.checks.values()) if record]
    for record in sorted(records, key=lambda record: str(record["started"])):
        machine = record["machine"]
        lines.append(
            f"| {record['id']} | {record['started'][:16].replace('T', ' ')} | "
            f"{', '.join(map(str, machine['pinned_to']))} | {machine['threads']} | "
            f"{machine['load_at_start'][0]:.1f} | {_short(record['commit'])} | {record['source'][:10]} |"
        )
    machine = records[0]["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in records[0]["versions"].items())
    return [
        *lines,
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, accelerator: "
        f"{machine['accelerator']}, {machine['system']}, Python {machine['python']}; {packages}. Load: processes that "
        "ran or waited on the whole machine, mean of the minute before. Sources: SHA-256 of `src/unfog`.",
    ]


def _require_alike(key: str, *groups: Iterable[Record]) -> None:
    for group in groups:
        try:
            require_alike({f"record {number}": {key: measured[key]} for number, measured in enumerate(group, 1)})
        except IncomparableError as error:
            raise IncomparableError(
                f"records of the equal time: {error}; remove those that are out of date, and make campaign makes "
                "them anew"
            ) from error


def _distance(score: Record) -> Distance:
    return Distance(score["frechet"], tuple(score["resampled"]))


def _versioned(one: Outcome) -> str:
    return f"{NAMES[one.system]} {one.trained['version']}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes"


def _pinning(campaign: Campaign) -> str:
    machines = [one.trained["machine"] for one in campaign.outcomes]
    told = {
        f"on {len(m['pinned_to'])} of {m['cores']} cores with {m['threads']} thread{'s' * (m['threads'] > 1)}"
        for m in machines
    }
    return " or ".join(sorted(told))


def _with_range(found: Interval) -> str:
    return f"{found.value:.3f} {_range(found, 3)}"


def _range(found: Interval, digits: int = 2) -> str:
    return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _short(commit: str) -> str:
    name, _, dirty = commit.partition("-")
    return f"{name[:10]}{' with changes' if dirty else ''}"
