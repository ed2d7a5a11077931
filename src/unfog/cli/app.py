"""The commands and their options. Nothing here imports torch: what a command does is imported when it is called."""

import importlib.metadata
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from unfog.cli.errors import CommandError, speaks
from unfog.cli.options import Experiment, Sampling, Sweeping

_FLAG = Parameter(negative=())

app = App(
    name="unfog",
    help="Train diffusion models, sample from them, measure and inspect them.",
    version=lambda: importlib.metadata.version("unfog"),
    suppress_keyboard_interrupt=False,
)
inspect = App(name="inspect", help="Show a schedule, a sampler, a network or a run in numbers.")
app.command(inspect)
data = App(name="data", help="Look at data before training on them.")
app.command(data)


@app.command
def train(
    recipe: str,
    /,
    *settings: str,
    out: Path | None = None,
    resume: Annotated[bool, _FLAG] = False,
    dry_run: Annotated[bool, _FLAG] = False,
    no_report: Annotated[bool, _FLAG] = False,
) -> int:
    """Train a model and write a report about it.

    Args:
        recipe: a name that 'unfog recipes' lists, or a recipe.yaml.
        settings: settings that differ from the recipe's, such as train.steps=1000 or schedule=cosine.
        out: the run folder; runs/NAME unless given.
        resume: continue the run in that folder, with its own recipe; train.steps and save.* may change.
        dry_run: print the recipe with all its settings, and what the network costs; start nothing.
        no_report: train only.
    """
    from unfog.cli import train as command

    return command.run(recipe, settings, out, resume=resume, dry_run=dry_run, report=not no_report)


@app.command
def sample(
    run: Path,
    /,
    *,
    count: Annotated[int | None, Parameter(name=("--count", "-n"))] = None,
    label: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    seed: int | None = None,
    first: int | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    out: Path | None = None,
) -> int:
    """Draw samples from a run, as PNG files that tell how they were made.

    Samples of 2 or of more than 4 channels, which PNG has no room for, are NumPy files, each with a JSON file that
    tells how it was made; grid.png then has a row for each sample and a column for each channel.

    Args:
        run: the run folder.
        count: how many; 64 unless given.
        label: a class by name or number, repeatable; 'all' goes through all classes in turn (the default where there
            are classes), 'none' is unconditional.
        seed: 0 unless given; sample k of a seed is always the same.
        first: number of the first sample; 0 unless given.
        sampling: how to sample.
        batch_size: samples at a time; it changes speed and memory only.
        from_: a file of a sample written by this command: make that sample again, from its own settings.
        out: folder for the files; a new one in RUN/samples unless given.
    """
    from unfog.cli import sample as command

    wanted = command.Wanted(count, label, seed, first, sampling or Sampling())
    return command.run(run, wanted, batch_size=batch_size, again=from_, out=out)


@app.command
def evaluate(
    run: Path,
    /,
    *,
    samples: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    bound: int | None = None,
    likelihood: int | None = None,
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
        sampling: how to sample; of the bound and the likelihood, average alone.
    """
    if bound is not None or likelihood is not None:
        from unfog.cli import bound as bits

        asked = bits.Asked(bound, likelihood, seed, batch_size)
        return bits.run(run, asked, sampling or Sampling(), samples=samples)
    from unfog.cli import evaluate as command

    return command.run(run, sampling or Sampling(), samples=samples, seed=seed, batch_size=batch_size)


@app.command
def sweep(
    run: Path,
    /,
    *,
    sweeping: Sweeping | None = None,
    out: Path | None = None,
    dry_run: Annotated[bool, _FLAG] = False,
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


@app.command
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


@app.command
def estimate(
    recipe: str,
    /,
    *settings: str,
    batch: Annotated[tuple[int, ...], Parameter(negative=())] = (),
    probe: float = 15.0,
    json: Annotated[bool, _FLAG] = False,
) -> int:
    """Tell what a run will need before it starts: memory, arithmetic, time, disk, and the largest micro-batch.

    Args:
        recipe: a name that 'unfog recipes' lists, a recipe.yaml, or a run folder.
        settings: settings that differ from the recipe's.
        batch: a micro-batch to tell the memory for, repeatable; the recipe's own unless given.
        probe: seconds to measure for, about; 0 measures nothing and tells what can be computed.
        json: print one JSON object instead of tables.
    """
    from unfog.cli import estimate as command

    return command.run(recipe, settings, batches=batch, seconds=probe, as_json=json)


@app.command
def doctor(
    *,
    recipe: str | None = None,
    out: Path = Path("runs"),
    compile: Annotated[bool, _FLAG] = False,  # noqa: A002 - what torch calls it
    json: Annotated[bool, _FLAG] = False,
) -> int:
    """Check that this machine and this installation train correctly; takes under two minutes.

    Ends with status 1 if a check fails, and says what to do about it.

    Args:
        recipe: a recipe whose network, loss and data are checked, instead of a small one that is built in.
        out: where runs will lie: that disk is measured.
        compile: also compare the compiled network with the plain one, which takes minutes.
        json: print one JSON object instead of lines.
    """
    from unfog.cli import doctor as command

    return command.run(recipe, out, compiled=compile, as_json=json)


@app.command
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


@app.command
def recipes() -> int:
    """List the named recipes, with the size of their networks and what these cost."""
    from unfog.cli import listing

    return listing.run()


@data.command
def check(
    path: str,
    /,
    *,
    size: int | None = None,
    channels: int | None = None,
    split: str | None = None,
    background: str = "white",
    value_range: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    max_bad: float | None = None,
    json: Annotated[bool, _FLAG] = False,
) -> int:
    """Decode every picture as training would, and tell what there is, what is bad, and whether training would begin.

    Ends with status 0 if training with the same settings would begin, and 2 if it would not.

    Args:
        path: a folder, a file, a pattern such as 'train-{000..012}.tar', 'digits', 'hf:owner/name', or a known name.
        size: side of the square that pictures are brought to (data.size).
        channels: 1 for grey, 3 for colour, 4 for colour with alpha; of arrays, as many as they have (data.channels).
        split: only this one; all that there are unless given.
        background: the colour on which transparent pixels are composited (data.background).
        value_range: of arrays that are not uint8, and pictures of floats: black,white such as 0,1 (data.value_range).
        max_bad: share of the pictures that may be bad (data.max_bad); 0.01 unless given.
        json: print one JSON object instead of tables.
    """
    from unfog.cli import data as command

    wanted = command.wanted(path, size, channels, background, value_range, max_bad)
    return command.check(wanted, split, as_json=json)


@inspect.command
def schedule(
    which: str,
    /,
    *settings: str,
    points: int = 11,
    beside: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    plot: Path | None = None,
) -> int:
    """Show a noise schedule at some times, or draw several over each other.

    Args:
        which: its name, such as cosine, rectified-flow or linear-betas; or a recipe or run that has one.
        settings: its settings, such as shift=3.
        points: number of times, evenly from 0 to 1.
        beside: another schedule, repeatable: a name, a mapping such as '{kind: sigmoid, tau: 0.5}', a recipe or a run.
        plot: a PNG or SVG file to draw alpha_bar, log-SNR and, of tables, betas into.
    """
    from unfog.cli import inspection

    return inspection.schedule(which, settings, points, beside=beside, plot=plot)


@inspect.command
def sampler(
    which: str, /, *settings: str, schedule: str | None = None, grid: str | None = None, steps: int | None = None
) -> int:
    """Show a sampler as the table of numbers that it is.

    Args:
        which: its name, such as ddim, heun or dpmpp; or a recipe or run that has one.
        settings: its settings, such as eta=0.5.
        schedule: a name, or a mapping such as '{kind: rectified_flow, shift: 3}'; cosine unless given.
        grid: a name or a mapping; trailing unless given.
        steps: of the grid; 10 unless given.
    """
    from unfog.cli import inspection

    return inspection.sampler(which, settings, schedule=schedule, grid=grid, steps=steps)


@inspect.command
def network(which: str, /, *settings: str, depth: int = 2, size: int | None = None) -> int:
    """Show the layers of a network with their parameters and arithmetic.

    Args:
        which: a recipe or a run.
        settings: settings that differ from the recipe's, such as network.widths=[32,64].
        depth: how far to go into modules within modules.
        size: side of the pictures, where the recipe does not tell it.
    """
    from unfog.cli import inspection

    return inspection.network(which, settings, depth=depth, size=size)


@inspect.command(name="run")
def inspect_run(folder: Path, /) -> int:
    """Show the settings, checkpoints and last losses of a run.

    Args:
        folder: the run folder.
    """
    from unfog.cli import inspection

    return inspection.run(folder)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show
        try:
            status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        except CycloptsError as error:
            _complain(f"{' '.join(str(error).split())} (see unfog --help)")
            return 2
        except CommandError as error:
            _complain(str(error))
            return error.status
        except KeyboardInterrupt:
            _complain("interrupted")
            return 130
    return status if isinstance(status, int) else 0


def _complain(told: str) -> None:
    """Print why a command ends; of several processes, those besides the first say which they are."""
    who = "unfog" if speaks() else f"unfog, process {os.environ['RANK']}"
    if told:
        print(f"{who}: {told}", file=sys.stderr)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    if speaks():
        print(f"unfog: warning: {message}", file=sys.stderr)
