from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tests.zoo.peers import Shapes


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def published_shapes() -> Mapping[str, Shapes]:
    """Names and shapes of published networks, by our name of the model."""
    models: dict[str, Shapes] = {}
    for line in (Path(__file__).parent / "published-shapes.txt").read_text().splitlines():
        if line.startswith("["):
            shapes = models.setdefault(line.strip("[]"), {})
        elif not line.startswith("#"):
            home, *layers = line.split()
            for layer in layers:
                name, _, numbers = layer.lstrip("!").partition("=")
                whole = name if home == "." else f"{home}.{name}"
                shape = tuple(map(int, numbers.split(",")))
                shapes.update(
                    {whole: shape} if layer[0] == "!" else {f"{whole}.weight": shape, f"{whole}.bias": shape[:1]}
                )
    return models
