import subprocess
import sys

import pytest

from unfog.cli import main

WITHOUT_TORCH = """
import sys
from unfog.cli import main
assert main({arguments}) == {status}
heavy = [name for name in ("torch", "numpy", "pydantic", "PIL", "matplotlib") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["train", "--help"], 0), (["inspect", "network", "--help"], 0), (["--version"], 0), (["x"], 2)],
)
def test_help_and_mistyped_commands_do_not_import_torch(arguments: list[str], status: int) -> None:
    code = WITHOUT_TORCH.format(arguments=arguments, status=status)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_alone_does_not_import_torch() -> None:
    code = "import sys, unfog; unfog.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "recipes", "inspect"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: unfog" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sampel"], 'Did you mean "sample"?'),
        (["sample", "x", "--stepz", "3"], "Did you mean --steps?"),
        (["sample", "x", "--steps", "few"], "--steps"),
        (["sample"], "RUN"),
        (["inspect", "schedul"], 'Did you mean "schedule"?'),
    ],
)
def test_a_mistyped_command_line_is_one_message_on_standard_error(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert told.err.count("\n") == 1


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from unfog.cli import listing

    def broken() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(listing, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["recipes"])


def test_an_interrupt_ends_with_the_status_of_its_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unfog.cli import listing

    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "run", interrupted)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "unfog: interrupted\n"
