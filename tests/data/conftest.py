import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and home for each test, so that none sees what another or the user has decoded."""
    folder = tmp_path / "cache of this test"
    monkeypatch.setenv("UNFOG_CACHE", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("UNFOG_DATA", raising=False)
    return folder


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Make the file of a flat picture of one level: its pixels tell which picture it is."""

    def make(level: int, height: int = 4, width: int = 4, mode: str = "L") -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((height, width), level, dtype=np.uint8)).convert(mode).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def save(tmp_path: Path, png: Callable[..., bytes]) -> Callable[..., Path]:
    """Write such a picture under a name in the folder ``pictures`` of the test."""

    def write(name: str, level: int, height: int = 4, width: int = 4, mode: str = "L") -> Path:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level, height, width, mode))
        return path

    return write
