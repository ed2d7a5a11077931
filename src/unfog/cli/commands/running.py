"""The commands that make runs and sample from them, and their options. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unfog.cli.options import FLAG, Sampling


def train(
    recipe: str,
    /,
    *settings: str,
    out: Path | None = None,
    resume: Annotated[bool, FLAG] = False,
    dry_run: Annotated[bool, FLAG] = False,
    no_report: Annotated[bool, FLAG] = False,
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


def sample(
    run: Path,
    /,
    *,
    count: Annotated[int | None, Parameter(name=("--count", "-n"))] = None,
    label: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    attribute: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    negative: str | None = None,
    also: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    classifier: Path | None = None,
    weak: Path | None = None,
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
        attribute: name=value of an attribute that the model knows, repeatable; the others are left to the model.
        negative: what to be guided away from, such as '{label: 3}' or '{attributes: {colour: red}}'; it needs a scale
            of guidance.
        also: a further condition with a scale of its own, repeatable, such as '{label: 3, scale: 2}'; with
            'region: [0, 0, 0.5, 1]' (top, left, bottom, right, in shares) it holds for that part of the picture only.
        classifier: a run that learned to name the class of noisy data, to guide by; with --classifier-scale.
        weak: the run of a weaker model to be guided away from; with --weak-scale.
        seed: 0 unless given; sample k of a seed is always the same.
        first: number of the first sample; 0 unless given.
        sampling: how to sample.
        batch_size: samples at a time; it changes speed and memory only.
        from_: a file of a sample written by this command: make that sample again, from its own settings.
        out: folder for the files; a new one in RUN/samples unless given.
    """
    from unfog.cli import sample as command

    wanted = command.Wanted(count, label, seed, first, sampling or Sampling(), attribute, negative, also)
    return command.run(run, wanted, command.Guides(classifier, weak), batch_size=batch_size, again=from_, out=out)


def import_(
    path: Path | None = None,
    /,
    *,
    as_: Annotated[str | None, Parameter(name="--as")] = None,
    out: Path | None = None,
    entry: str | None = None,
    data: str | None = None,
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
) -> int:
    """Make a run of a published checkpoint, from a file or folder on this machine.

    The file must hold exactly the tensors of that model. Files that would have to be unpickled are refused.

    Args:
        path: a .safetensors, .pt, .pth, .bin or .ckpt file, or a folder as diffusers saves it.
        as_: which model it is, by its name in the list; 'diffusers' takes it from the folder's own config.json.
        out: the run folder; runs/NAME unless given.
        entry: which weights, where a file holds several sets, such as ema.
        data: what 'unfog evaluate' is to compare with, as for data.path of recipes; that of the model unless given.
        list_: list the models, and import nothing.
    """
    from unfog.cli import importing as command

    return command.list_models() if list_ else command.run(path, as_, out, entry=entry, data=data)


def estimate(
    recipe: str,
    /,
    *settings: str,
    batch: Annotated[tuple[int, ...], Parameter(negative=())] = (),
    probe: float = 15.0,
    json: Annotated[bool, FLAG] = False,
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


def doctor(
    *,
    recipe: str | None = None,
    out: Path = Path("runs"),
    compile: Annotated[bool, FLAG] = False,  # noqa: A002 - what torch calls it
    json: Annotated[bool, FLAG] = False,
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


def recipes() -> int:
    """List the named recipes, with the size of their networks and what these cost."""
    from unfog.cli import listing

    return listing.run()
