"""The command line: which commands there are, and how an error is told."""

import importlib.metadata
import os
import sys
import warnings

from cyclopts import App, CycloptsError

from unfog.cli.commands import looking, measuring, running
from unfog.cli.errors import CommandError, speaks

app = App(
    name="unfog",
    help="Train diffusion models, sample from them, measure and inspect them.",
    version=lambda: importlib.metadata.version("unfog"),
    suppress_keyboard_interrupt=False,
)
inspect = App(name="inspect", help="Show a schedule, a sampler, a network or a run in numbers.")
data = App(name="data", help="Look at data before training on them.")
for group in (inspect, data):
    app.command(group)
for command in (
    running.train,
    running.sample,
    measuring.evaluate,
    measuring.score,
    measuring.sweep,
    measuring.audit,
    measuring.guidance,
    measuring.fit_sampler,
    running.estimate,
    running.doctor,
    measuring.lab,
    measuring.families,
    running.recipes,
):
    app.command(command)
app.command(running.import_, name="import")
for shown in (looking.schedule, looking.sampler, looking.network):
    inspect.command(shown)
inspect.command(looking.inspect_run, name="run")
data.command(looking.check)


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
