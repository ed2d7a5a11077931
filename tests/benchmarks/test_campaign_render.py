import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from benchmarks.campaign.jobs import Bits, Check, Classifier, Equal, FitSampler, Floor, Scored, System, Trained, queue
from benchmarks.campaign.ratio import Distance, over_samples, over_seeds
from benchmarks.campaign.record import Places, write_record
from benchmarks.campaign.render import COMMAND, render
from benchmarks.pages import END, start
from PIL import Image

from unfog.evaluation.card import IncomparableError
from unfog.images import write_png

Record = dict[str, Any]
MACHINE = {"processor": "abacus", "cores": 2, "pinned_to": [0], "threads": 1, "memory_bytes": 2**34}
MACHINE |= {"accelerator": "none", "system": "Linux", "python": "3.11.7", "load_at_start": [1.5, 1.0, 0.5]}
MADE = {"commit": "0123456789abcdef", "source": "f" * 64, "started": "2026-01-02T03:04:05+00:00", "machine": MACHINE}
MADE |= {"versions": {"torch": "2.0"}, "version": "1.2.3"}
DISTANCES = {
    System.UNFOG: (1.0, 2.0, 4.0),
    System.DIFFUSERS: (4.0, 16.0, 16.0),
    System.DDPM_PYTORCH: (2.0, 4.0, 8.0),
}


def score(value: float) -> Record:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 100}


def quality(distance: float) -> Record:
    measures = {name: score(0.5) for name in ("precision", "recall", "density", "coverage")}
    # Resamples lie about the distance and a bias of 1.
    return {"frechet": distance, "resampled": [distance + 1 + k / 100 for k in range(-10, 11)], **measures}


def trained(seconds: float = 480.0) -> Record:
    points = [[float(k), 16 * k, 1.0 / k] for k in range(1, 20)]
    return {
        **MADE,
        "measured": {
            "seconds": seconds,
            "budget_seconds": seconds,
            "cpu_seconds": 0.975 * seconds,
            "steps": 30,
            "examples": 480,
            "examples_per_second": 480 / seconds,
            "loss_curve": {"columns": [], "points": points},
            "parameters": 1234567,
            "settings": {"optimiser": "Adam", "loss": "noise prediction"},
        },
    }


def scored(distance: float, samples: int = 100) -> Record:
    fast = {"settings": "fast, 20 evaluations", "evaluations": 20, **quality(distance)}
    slow = {"settings": "slow, 50 evaluations", "evaluations": 50, **quality(distance + 1)}
    whole = {"features": "own", "samples": samples, "test_images": 1000, "samplers": {"slow": slow, "fast": fast}}
    return {**MADE, "measured": {**whole, "counts": "fast", "frechet": distance}}


def recipe(seed: int, accuracy: float = 0.9, steps: int = 600) -> Record:
    parts = {name: score(0.5) for name in ("frechet", "precision", "recall", "density", "coverage")}
    evaluation = {
        "machine": {"processor": "abacus", "threads": "2", "accelerator": "none", "torch": "2.0", "date": "2026-01-02"},
        "samples": 1000,
        "evaluations": 20,
        "settings": "DDIM, 20 steps",
        "seed": seed,
        "sampling_seconds": 5.0,
        "loss_test": {"network": score(0.25), "zero": score(1.0)},
        "loss_train": {"network": score(0.2)},
        "scores": {
            "features": {"name": "own"},
            "count": 359,
            "samples": parts,
            "floor": parts,
            "accuracy": {"score": score(accuracy), "yardstick": score(0.95)},
        },
    }
    data = {"name": "digits/train", "count": 1438, "fingerprint": "f"}
    measured = {"evaluation": evaluation, "steps": steps, "batch_size": 128, "training_seconds": 60.0, "data": data}
    return {
        **MADE,
        "seed": seed,
        "measured": {**measured, "run_command": f"unfog train digits train.seed={seed} --out /home/ada/runs/digits"},
    }


def shapes(seed: int, named: float = 0.9) -> Record:
    record = recipe(seed)
    evaluation = record["measured"]["evaluation"]
    evaluation["scores"]["accuracy"] = {"reason": "no classes"}
    evaluation["adherence"] = {
        "named": score(named),
        "attributes": {"colour 1": score(0.8), "relation": score(0.6)},
        "by_count": {"1": score(0.97), "2": score(0.7)},
        "binding": score(0.75),
        "chance": {"named": score(0.01), "colour 1": score(0.14)},
        "reading_error": {"clean": score(0.0)},
        "samples": 1000,
    }
    return record


def classifier(seed: int, right: float, examples: int = 2000) -> Record:
    levels = [
        {"t": t, "log_snr": snr, "accuracy": {**score(right), "count": examples}, "cross_entropy": score(0.25)}
        for t, snr in ((0.1, 12.0), (0.9, -12.0))
    ]
    machine = {"processor": "abacus", "threads": "1", "accelerator": "none", "torch": "2.0", "date": "2026-01-02"}
    measured = {
        "evaluation": {"machine": machine, "dataset": "mnist/test", "seed": seed, "levels": levels},
        "steps": 800,
        "batch_size": 128,
        "training_seconds": 90.0,
        "data": {"name": "mnist/train", "count": 60000, "fingerprint": "f"},
        "run_command": f"unfog train mnist-classifier train.seed={seed}",
    }
    return {**MADE, "seed": seed, "measured": measured}


def bits(value: float) -> Record:
    means = {"values": [0.3, 0.2, 0.0], "errors": [0.01, 0.01, 0.0]}
    curve = {"times": [0.1, 0.5, 0.9], "log_snr": [9.0, 0.0, -9.0], "terms": means, "shares": means}
    parts = {"prior": score(1e-6), "diffusion": score(value - 0.5), "reconstruction": score(0.5)}
    whole = {"total": score(value), "nats": score(100 * value), "curve": curve, **parts}
    methods = {"continuous time": None, "beta variance": 1000}
    bounds = [{"method": method, "steps": steps, **whole} for method, steps in methods.items()]
    machine = {"processor": "abacus", "threads": "1", "accelerator": "none", "torch": "2.0", "date": "2026-01-02"}
    told = {"count": 256, "draws": 32, "seed": 0, "conditions": ["label"], "seconds": 90.0, "machine": machine}
    return {**MADE, "seed": 0, "measured": {**told, "bounds": bounds}}


class Project:
    """A folder with records and pages."""

    def __init__(self, folder: Path) -> None:
        self.places, self.pages = Places(folder / "records", folder / "work"), folder
        (folder / "docs").mkdir()
        for page in ("README.md", "docs/results.md"):
            (folder / page).write_text(f"Before.\n\n{start(COMMAND)}\nold figures\n{END}\n\nAfter.\n")

    def put(self, job: str, content: Record) -> None:
        write_record(self.places.record(job), job, "make campaign", content)

    def put_equal(self, system: System, seed: int) -> None:
        self.put(Equal(system, seed).id, trained())
        job = Scored(system, seed).id
        self.put(job, scored(DISTANCES[system][seed]))
        for sampler in ("fast", "slow"):
            write_png(self.places.records / f"{job}-{sampler}.png", torch.zeros(1, 58, 58), {})

    def render(self) -> str:
        render(queue(), self.places, self.pages)
        return (self.pages / "docs" / "results.md").read_text()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def complete(project: Project) -> Project:
    for system in System:
        for seed in range(3):
            project.put_equal(system, seed)
    project.put(
        Floor().id, {**MADE, "measured": {**quality(0.03), "samples": 100, "features": "own", "test_images": 1000}}
    )
    for seed in range(3):
        project.put(Trained("digits", seed).id, recipe(seed, accuracy=0.88 + 0.02 * seed))
    return project


def test_what_samples_show_of_what_was_asked_for_has_a_table(project: Project) -> None:
    project.put(Trained("shapes-small", 0).id, shapes(0))
    rows = project.render()
    assert "| `shapes-small` | 1 of 3 | 1.0 core-min | 1000 samples at 20 evaluations |  |" in rows
    assert "classification accuracy" not in rows
    for row in (
        "| all attributes | 90.0 % [80.0, 100.0] | 1.0 % [-9.0, 11.0] | 100 |",
        "| all, 1 object | 97.0 %",
        "| all, 2 objects | 70.0 %",
        "| binding of two objects | 75.0 %",
        "| colour 1 | 80.0 % [70.0, 90.0] | 14.0 % [4.0, 24.0] | 100 |",
        "| relation | 60.0 % [50.0, 70.0] |  | 100 |",
        "read wrongly: clean: 0.0 %",
    ):
        assert row in rows


def test_the_interval_over_seeds_is_students() -> None:
    ratio = over_seeds([1.0, 2.0, 4.0], [4.0, 16.0, 16.0])
    # Logarithms -2, -3, -2 times log 2; Student's quantile of two degrees of freedom is 4.302653.
    mean, deviation = -7 / 3, math.sqrt(((-2 + 7 / 3) ** 2 * 2 + (-3 + 7 / 3) ** 2) / 2)
    radius = 4.302653 * deviation / math.sqrt(3)
    # The quantile is given to seven digits.
    assert ratio == pytest.approx((2**mean, 2 ** (mean - radius), 2 ** (mean + radius)), rel=1e-6)


def test_an_interval_over_seeds_needs_two() -> None:
    with pytest.raises(ValueError, match="two seeds or more"):
        over_seeds([1.0], [2.0])


def test_resamples_are_paired_and_rid_of_their_bias() -> None:
    # Both distances rise and fall together, so that their ratio stays, however far each wanders.
    wander = [k / 100 for k in range(-20, 21)]
    ours, theirs = (Distance(d, tuple(7 + d * (1 + w) for w in wander)) for d in (1.0, 2.0))
    assert over_samples([ours], [theirs]) == pytest.approx((0.5, 0.5, 0.5))
    assert fmean(ours.recentred) == pytest.approx(1.0)


def test_a_distance_is_never_resampled_below_zero() -> None:
    assert min(Distance(0.01, (0.5, 1.0, 1.5)).recentred) == 0.0


def test_figures_land_between_the_markers_and_the_rest_stays(complete: Project) -> None:
    complete.render()
    for page in ("README.md", "docs/results.md"):
        text = (complete.pages / page).read_text()
        assert text.startswith(f"Before.\n\n{start(COMMAND)}\n")
        assert text.endswith(f"{END}\n\nAfter.\n")
        assert "old figures" not in text


def test_rendering_again_changes_nothing(complete: Project) -> None:
    files = ["README.md", "docs/results.md", "docs/images/equal-time-losses.png", "docs/images/equal-time-samples.png"]
    complete.render()
    before = [(complete.pages / file).read_bytes() for file in files]
    complete.render()
    assert [(complete.pages / file).read_bytes() for file in files] == before


def test_missing_jobs_are_named_and_those_done_are_not(project: Project) -> None:
    project.put_equal(System.UNFOG, 0)
    project.put(Trained("digits", 0).id, recipe(0))
    lines = [line for line in project.render().splitlines() if line.startswith("Missing")]
    done = {"equal/unfog/seed-0", "score/unfog/seed-0", "recipe/digits/seed-0"}
    for job in queue():
        assert any(f"`{job.id}`" in line for line in lines) == (job.id not in done)


def test_without_any_record_the_pages_say_what_is_missing(project: Project) -> None:
    assert project.render().count("`score/") == 9


def test_the_ratio_is_rendered_with_both_of_its_intervals(complete: Project) -> None:
    text = complete.render()
    ratio = over_seeds(DISTANCES[System.UNFOG], DISTANCES[System.DIFFUSERS])
    row = next(line for line in text.splitlines() if line.startswith("| diffusers 1.2.3 | 0, 1, 2"))
    assert f"**{ratio.value:.2f}** | [{ratio.low:.2f}, {ratio.high:.2f}]" in row
    assert "12.000 ± 6.928" in row
    assert row in (complete.pages / "README.md").read_text()


def test_the_goal_is_reached_only_where_ratio_and_interval_say_so(complete: Project) -> None:
    # Beside diffusers 0.20 [0.05, 0.75]; beside the other exactly 0.5 at every seed.
    assert "diffusers: reached; denoising-diffusion-pytorch: reached." in complete.render()
    for seed in range(3):
        complete.put(
            Scored(System.DDPM_PYTORCH, seed).id, scored(DISTANCES[System.UNFOG][seed] * (1.0, 1.5, 3.0)[seed])
        )
    assert "denoising-diffusion-pytorch: not reached." in complete.render()


def test_seeds_that_a_peer_lacks_are_left_out_of_the_ratio(project: Project) -> None:
    project.put_equal(System.UNFOG, 0)
    project.put_equal(System.UNFOG, 1)
    project.put_equal(System.DIFFUSERS, 1)
    text = project.render()
    assert "| diffusers 1.2.3 | 1 | 16.000 | **0.12** | one seed |" in text
    assert "diffusers: open, 1 of 3 seeds" in text


def test_a_training_that_was_not_scored_yet_is_shown_without_a_distance(project: Project) -> None:
    project.put(Equal(System.UNFOG, 0).id, trained())
    assert "| Unfog | 0 | not scored yet | 30 | 480 | 1.0 | 97.5 % |" in project.render()


def test_classifiers_are_shown_by_noise_level(project: Project) -> None:
    project.put(Classifier("mnist-classifier", 0).id, classifier(0, 0.9))
    assert "| 12.0 | 90.0 % [80.0, 100.0] | 0.250 [" in project.render()
    project.put(Classifier("mnist-classifier", 1).id, classifier(1, 0.8))
    text = project.render()
    assert "`mnist-classifier`, 2 of 3 seeds: 800 steps of 128 noisy examples of mnist/train in 1.5 ± 0.0 core" in text
    assert "| -12.0 | 85.0 ± 7.1 % | 0.250 ± 0.000 |" in text
    assert "`classifier/mnist-classifier/seed-2`" in text
    project.put(Classifier("mnist-classifier", 2).id, classifier(2, 0.8, examples=500))
    with pytest.raises(IncomparableError, match="examples"):
        project.render()


def test_one_seed_is_shown_with_its_interval_and_several_with_their_spread(project: Project) -> None:
    project.put(Trained("digits", 0).id, recipe(0))
    assert "| `digits` | 1 of 3 | 1.0 core-min | 90.0 % [80.0, 100.0], 1000 samples" in project.render()
    # A minute on two cores and a minute on one are not the same.
    two = {**recipe(2, accuracy=0.8), "machine": {**MACHINE, "threads": "2"}}
    project.put(Trained("digits", 2).id, two)
    text = project.render()
    assert "| `digits` | 2 of 3 | 1.5 ± 0.7 core-min | 85.0 ± 7.1 %, 1000 samples at 20 evaluations" in text
    assert (
        "unfog train digits train.seed=0 --out runs/digits\nunfog train digits train.seed=2 --out runs/digits\n" in text
    )


def test_bits_per_dimension_are_shown_with_their_interval_a_row_a_method(project: Project) -> None:
    project.put(Bits("cifar10-small").id, bits(4.25))
    text = project.render()
    row = "| 4.250 [4.150, 4.350] | 1.0e-06 | 3.750 | 0.500 | 256 | 0 |"
    assert f"| `cifar10-small` | variational bound, continuous time {row}" in text
    assert f"| `cifar10-small` | variational bound, 1000 steps, beta variance {row}" in text
    assert "given their label" in text
    assert "`cifar10-small`: 32 times for each image and row, 1.5 min in all" in text
    with Image.open(project.pages / "docs" / "images" / "bits-per-dimension.png") as image:
        assert image.width > 500


def test_bits_that_are_missing_are_named_beside_their_table(project: Project) -> None:
    project.put(Bits("mnist-small").id, bits(2.0))
    text = project.render()
    section = text[text.index("## Bits per dimension") : text.index("## Equal time")]
    assert "`bits/cifar10-small/bound`" in section
    assert "`bits/mnist-small/bound`" not in text
    assert text.count("`bits/cifar10-small/bound`") == 1


def test_the_check_of_the_ancestral_sampler_is_shown(complete: Project) -> None:
    samplers = {name: {"evaluations": n, **quality(3.0)} for name, n in (("ancestral", 1000), ("ddim", 50))}
    complete.put(Check(System.DIFFUSERS).id, {**MADE, "measured": {"samples": 250, "samplers": samplers}})
    assert "| diffusers | ancestral | 1000 | 250 | 3.000 [" in complete.render()


@pytest.mark.parametrize(
    ("job", "content", "told"),
    [
        (Scored(System.UNFOG, 1).id, scored(1.0, samples=99), "differ in samples"),
        (Equal(System.DIFFUSERS, 1).id, trained(seconds=60.0), "differ in budget_seconds"),
        (Trained("digits", 1).id, recipe(1, steps=599), "recipe/digits differ"),
    ],
)
def test_records_made_with_another_effort_are_not_put_beside_each_other(
    complete: Project, job: str, content: Record, told: str
) -> None:
    complete.put(job, content)
    with pytest.raises(ValueError, match=told):
        complete.render()


def test_samples_stand_side_by_side_at_twice_their_size(complete: Project) -> None:
    complete.render()
    with Image.open(complete.pages / "docs" / "images" / "equal-time-samples.png") as image:
        # Three sheets of 58 pixels, magnified, and four gaps of 48.
        assert image.width == 3 * 2 * 58 + 4 * 48


def test_a_score_without_its_picture_is_named(complete: Project) -> None:
    (complete.places.records / "score" / "diffusers" / "seed-0-fast.png").unlink()
    with pytest.raises(ValueError, match=r"seed-0-fast\.png"):
        complete.render()


def fit(evaluations: int, ratio: float = 0.5) -> Record:
    row = {
        "evaluations": evaluations,
        "kept": True,
        "fixed": "DDIM on Trailing",
        "iterations": 7,
        "seconds": 120.0,
        "cpu_seconds": 100.0,
        "distance": score(0.8 * ratio),
        "fixed_distance": score(0.8),
        "ratio": score(ratio),
        "frechet": 0.3,
        "fixed_frechet": 0.6,
    }
    run = {"step": 2000, "weights": "ema-0.050", "sha256": "f"}
    accurate = {"settings": "DDIM, 96 steps", "error": score(0.002)}
    return {**MADE, "measured": {"run": run, "samples": 100, "accurate": accurate, "features": "own", "row": row}}


def test_fitted_samplers_stand_beside_the_best_fixed_ones(complete: Project) -> None:
    for evaluations in (4, 8):
        complete.put(FitSampler("mnist-small", evaluations).id, fit(evaluations))
        complete.put(FitSampler("cifar10-small", evaluations).id, fit(evaluations, 0.75))
    text = complete.render()
    told = "| `mnist-small` | 4 | DDIM on Trailing | 0.8000 | 0.4000 | **0.50 [0.40, 0.60]** | 0.6: reached |"
    assert f"{told} 0.600 | 0.300 | 0.50 | 1.7 min |" in text
    same = "DDIM on Trailing | 0.8000 | 0.6000 | **0.75 [0.65, 0.85]**"
    assert f"| `cifar10-small` | 4 | {same} | 0.6: not reached |" in text
    assert f"| `cifar10-small` | 8 | {same} | 1: reached |" in text
    assert "accurate solution by DDIM, 96 steps, 0.0020 from that of half the steps" in text
    assert (complete.pages / "docs" / "images" / "fitted-samplers.png").is_file()


def test_fits_that_are_missing_are_named(complete: Project) -> None:
    assert "`fit/mnist-small/4`, `fit/mnist-small/6`" in complete.render()
