"""The commands that show data and values, and their options. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unfog.cli.options import FLAG


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
    json: Annotated[bool, FLAG] = False,
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


def inspect_run(folder: Path, /) -> int:
    """Show the settings, checkpoints and last losses of a run.

    Args:
        folder: the run folder.
    """
    from unfog.cli import inspection

    return inspection.run(folder)
