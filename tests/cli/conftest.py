from pathlib import Path

import pytest

from unfog.cli import main

TINY = [
    "train.steps=4",
    "train.batch_size=8",
    "network.widths=[32]",
    "network.blocks=[0]",
    "network.attention=[]",
    "network.middle_attention=false",
    "network.dropout=0.1",
    "data.limit=40",
    "save.checkpoint_every=1",
    "save.log_every=1",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Settings that make digits the smallest of runs."""
    return TINY


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained from the command line, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "digits", *TINY, "--out", str(folder), "--no-report"]) == 0
    return folder
