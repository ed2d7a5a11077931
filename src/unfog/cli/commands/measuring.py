"""The commands that measure, and their options. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unfog.cli.errors import CommandError
from unfog.cli.options import FLAG, Experiment, Pictures, Sampling, Sweeping


def evaluate(
    run: Path,
    /,
    *,
    samples: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    bound: int | None = None,
    likelihood: int | None = None,
    features: str | None = None,
    weights: Path | None = None,
    sampling: Sampling | None = None,
) -> int:
    """Measure a run again: write evaluation.json and report.html, and print the scores.

    With --bound, measure instead how many bits a dimension of a test example takes: the variational bound on the
    likelihood, in continuous time and for chains of steps. With --likelihood it is the density itself that is measured,
    by the probability-flow ODE, of pictures dequantised by uniform noise. Either is printed with its interval, and
    written to bound.json or likelihood.json.

    Args:
        run: the run folder.
        samples: how many are drawn, evenly over the classes.
        seed: of the samples, or of what is drawn for bound and likelihood.
        batch_size: samples, or test examples, at a time.
        bound: how many test examples to bound the likelihood of; no samples are drawn then.
        likelihood: how many test examples to measure the likelihood of, likewise.
        features: which features to compare samples in: own (a network that is trained on the training set) unless
            given, inception, inception-tf, dinov2, dinov2-base, clip or clip-large.
        weights: of published features, a file or folder, instead of those in the cache.
        sampling: how to sample; of the bound, the likelihood and a classifier, average alone.
    """
    if bound is not None or likelihood is not None:
        from unfog.cli import bound as bits

        asked = bits.Asked(bound, likelihood, seed, batch_size)
        others = {"samples": samples, "features": features, "weights": weights}
        return bits.run(run, asked, sampling or Sampling(), others)
    from unfog.cli import evaluate as command

    judged = command.Judged(features, weights)
    return command.run(run, sampling or Sampling(), judged, samples=samples, seed=seed, batch_size=batch_size)


def score(
    images: Annotated[tuple[str, ...], Parameter(negative=())],
    /,
    *,
    pictures: Pictures,
    weights: Path | None = None,
    seed: int = 0,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Score pictures against real ones, without a model: Fréchet and kernel distance, precision, recall and others.

    Several sets are put into one table if they were measured alike, and refused if not.

    Args:
        images: folders of pictures or data sets; a run folder stands for samples that are drawn from it.
        pictures: what they are scored against, and in which features.
        weights: of published features, a file or folder, instead of those in the cache.
        seed: of choices and cuts, and of the samples of a run.
        json: print one JSON array instead of a table.
    """
    from unfog.cli import score as command

    if not images:
        raise CommandError("nothing to score: give one folder or more, such as unfog score samples --against mnist")
    return command.run(images, pictures, weights=weights, seed=seed, as_json=json)


def sweep(
    run: Path,
    /,
    *,
    sweeping: Sweeping | None = None,
    out: Path | None = None,
    dry_run: Annotated[bool, FLAG] = False,
) -> int:
    """Compare samplers, grids, steps and scales of guidance: what each costs, how accurate and how good it is.

    Tells first how long it will take. Writes sweep.json and sweep.png, and recommends a setting. What was measured
    before with the same weights and counts is read from sweep.json, so an interrupted sweep goes on.

    Args:
        run: the run folder.
        sweeping: what to compare.
        out: folder for the files; RUN/sweep unless given.
        dry_run: tell how long it will take, and measure nothing.
    """
    from unfog.cli import sweep as command

    return command.run(run, sweeping or Sweeping(), out=out, dry_run=dry_run)


def audit(
    run: Path,
    /,
    *,
    memorisation: Annotated[bool, FLAG] = False,
    bias: Annotated[bool, FLAG] = False,
    features: Annotated[bool, FLAG] = False,
    samples: int = 1000,
    level: float | None = None,
    seed: int = 0,
    batch_size: int = 250,
    sampling: Sampling | None = None,
    out: Path | None = None,
) -> int:
    """Look for near-copies of training examples among samples, and compare classes and attributes with the data's.

    Samples are asked for the classes and attributes of training examples. Writes audit.json and audit.html, which shows
    the suspects beside the examples that they resemble.

    Args:
        run: the run folder.
        memorisation: look for near-copies; without this and --bias, both are done.
        bias: compare the shares of classes and attributes.
        features: look for near-copies also in the features of the built-in network, each way with half the level.
        samples: how many are drawn.
        level: share of new pictures that may be flagged as near-copies; 0.01 unless given.
        seed: of the samples and of everything that is drawn at random.
        batch_size: samples at a time; it changes speed and memory only.
        sampling: how to sample.
        out: folder for the files; RUN/audit unless given.
    """
    from unfog.cli import audit as command

    asked = command.Asked(memorisation, bias, features, samples, level, seed, batch_size)
    return command.run(run, asked, sampling or Sampling(), out=out)


def guidance(
    run: Path,
    /,
    *,
    scales: str = "1,1.5,2,3,5,8",
    samples: int = 1000,
    seed: int = 0,
    batch_size: int = 250,
    sampling: Sampling | None = None,
    out: Path | None = None,
) -> int:
    """Measure what guidance trades: fidelity against diversity, as the scale grows.

    Every scale draws the same samples, of the same noises and conditions. Writes guidance.json and the curve as
    guidance.png and guidance.svg. What was measured before with the same weights and counts is read from guidance.json.

    Args:
        run: the run folder.
        scales: of classifier-free guidance, with commas between; 1 is none.
        samples: drawn with each scale, asked for the classes and attributes of training examples.
        seed: of the samples and of everything that is drawn at random.
        batch_size: samples at a time; it changes speed and memory only.
        sampling: how to sample; --interval measures guidance between two noise levels.
        out: folder for the files; RUN/guidance unless given.
    """
    from unfog.cli import guidance as command

    asked = command.Asked(scales, samples, seed, batch_size)
    return command.run(run, asked, sampling or Sampling(), out=out)


def fit_sampler(
    run: Path,
    /,
    *,
    steps: int,
    guidance: float | None = None,
    average: str | None = None,
    seed: int = 0,
    noises: int = 144,
    batch_size: int = 48,
) -> int:
    """Fit a sampler to a run: the times and weights with which so many steps come nearest to the model's own solution.

    Takes some minutes. It begins from the best fixed sampler, tells by how much it is nearer on noises that took no
    part, and is stored with the run if it is; 'unfog sample RUN --sampler fitted --steps N' then uses it. Once the run
    has other weights, it has to be fitted again.

    Args:
        run: the run folder.
        steps: evaluations of the network for one sample, without those of guidance.
        guidance: scale of classifier-free guidance that it is for; the recipe's own unless given.
        average: which weights it is for, as for 'unfog sample'.
        seed: of the noises.
        noises: how many trajectories steps of the fit are made from.
        batch_size: trajectories at a time.
    """
    from unfog.cli import fit as command

    return command.run(
        run, steps=steps, guidance=guidance, average=average, seed=seed, noises=noises, batch_size=batch_size
    )


def lab(*, experiment: Experiment | None = None, out: Path = Path("lab.html")) -> int:
    """Run samplers on mixtures of Gaussians, where score and solution are exact, and write a page of plots and tables.

    Tells of each sampler its error against evaluations, its measured order of convergence, the law of its samples, its
    trajectories and its cost. Nothing is trained, and no run is needed.

    Args:
        experiment: what to run.
        out: the page; one of that name is replaced.
    """
    from unfog.cli import lab as command

    return command.run(experiment or Experiment(), out)


def families(
    data: str,
    /,
    *settings: str,
    families: str = "diffusion,gan,vae,flow",
    minutes: float = 5.0,
    seeds: str = "0",
    recipe: str | None = None,
    samples: int = 1000,
    likelihood: int = 256,
    out: Path | None = None,
) -> int:
    """Compare families of generative models on the same data, for equal time and with equally many parameters.

    Trains each model for the same processor time, and tells of all: quality, coverage, accuracy score, bits per
    dimension, speed and stability. Writes families.json, curves against time and a picture of samples of each.

    Args:
        data: data as data.path has them, or a recipe, whose data and diffusion model are taken.
        settings: settings that differ from the recipe's, such as data.size=32 or condition.classes=false.
        families: of diffusion, gan, vae and flow, with commas between.
        minutes: of training for each model and seed.
        seeds: of which each family is trained once, with commas between.
        recipe: whose diffusion model takes part; one that suits the data unless given.
        samples: drawn from each model to measure it.
        likelihood: how many test examples the bits per dimension are measured of; 0 measures none.
        out: folder for the files; runs/families-DATA unless given.
    """
    from unfog.cli import families as command

    return command.run(
        data,
        settings,
        families=families,
        minutes=minutes,
        seeds=seeds,
        recipe=recipe,
        samples=samples,
        likelihood=likelihood,
        out=out,
    )
