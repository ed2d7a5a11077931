from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unfog.checkpoint import list_checkpoints
from unfog.data.loader import ShuffledBatches
from unfog.diffusion.nn import cost
from unfog.diffusion.nn.dit import DiTConfig
from unfog.recipe.build import build_task
from unfog.recipe.estimate import (
    Activations,
    Spread,
    disk_of,
    memory_of,
    parts_of,
    shapes_of,
    stand_ins,
    training_flops,
    training_seconds,
)
from unfog.recipe.run import Run, initial_network
from unfog.recipe.schema import Recipe
from unfog.training.optim import optimizer_tensors
from unfog.training.trainer import Trainer

DIT = DiTConfig(in_channels=1, out_channels=1, patch=2, dim=32, depth=2, heads=2, num_classes=10)


@pytest.fixture(params=["unet", "dit"])
def recipe(request: pytest.FixtureRequest, tiny: Recipe) -> Recipe:
    return tiny if request.param == "unet" else replace(tiny, network=DIT)


@pytest.fixture
def trainer(recipe: Recipe, trained: Run) -> Trainer:
    """A real one, after a step."""
    made = Trainer(build_task(recipe, initial_network(recipe)), ShuffledBatches(trained.data().train, 0), recipe.train)
    made.advance()
    return made


def size(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def test_parts_sum_up_to_the_network(recipe: Recipe) -> None:
    network = initial_network(recipe)
    parts = parts_of(shapes_of(recipe))
    assert sum(part.parameters for part in parts) == cost.parameters(network)
    for part in parts:
        held = getattr(network, part.name, None)
        own = network.parameters(recurse=False) if held is None else held.parameters()
        assert part.parameters == sum(p.numel() for p in own)


def test_shared_parameters_count_once() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    network[1].weight = network[0].weight
    assert [part.parameters for part in parts_of(network)] == [16]


def test_memory_is_that_of_a_trainer_to_the_byte(recipe: Recipe, trainer: Trainer) -> None:
    module = trainer.task.players()["model"]
    averages = trainer.averages["model"]
    optimizer = trainer._players["model"].optimizer
    told = memory_of(recipe, shapes_of(recipe))
    assert told.weights == size(*module.parameters(), *module.buffers())
    assert told.gradients == size(*(p.grad for p in module.parameters()))
    assert told.optimizer == size(*optimizer_tensors(optimizer, module).values())
    for kind in recipe.train.averages:
        own = [tensor for name, tensor in averages.weights(kind).items() if name not in averages.copied]
        assert told.averages[kind.name] == size(*own)
    assert told.copied == size(*(averages.weights(kind)[name] for name in averages.copied))


def test_averages_of_half_precision_weights_are_wide(tiny: Recipe) -> None:
    half = memory_of(tiny, shapes_of(tiny).to(torch.bfloat16))
    assert half.averages["ema-0.050"] == 2 * half.weights


def test_disk_is_what_a_run_takes(tiny: Recipe, trained: Run) -> None:
    def below(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    told = disk_of(tiny, shapes_of(tiny))
    # Headers of files are estimated; tensors, which are nearly all of it, are exact.
    assert told.checkpoint == pytest.approx(below(list_checkpoints(trained.folder)[0]), rel=0.05)
    assert told.finished == pytest.approx(below(trained.folder), rel=0.05)
    assert told.most == told.finished + told.checkpoint


def test_snapshots_are_counted(tiny: Recipe) -> None:
    network = shapes_of(tiny)
    often = replace(tiny, train=replace(tiny.train, snapshot_every=2))
    told = disk_of(often, network)
    # Two times two averages, each about the size of the weights.
    assert told.snapshots == pytest.approx(4 * memory_of(tiny, network).weights, rel=0.05)
    assert told.finished == disk_of(tiny, network).finished + told.snapshots


class Two(nn.Module):
    """Two matrices, the first of which needs no gradient of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


def test_arithmetic_of_training_is_counted_operation_by_operation() -> None:
    x, level = torch.zeros(5, 4), torch.zeros(5)
    first, second = 2 * 5 * 4 * 8, 2 * 5 * 8 * 2
    assert training_flops(Two().to("meta"), x, level, {}) == 2 * first + 3 * second


def test_training_costs_three_times_a_forward_pass_and_recomputing_up_to_one_more(recipe: Recipe) -> None:
    inputs = stand_ins(recipe, 8, 8)
    forward = cost.flops(shapes_of(recipe), *inputs[:2], cond=inputs[2])
    plain = training_flops(shapes_of(recipe), *inputs)
    again = replace(recipe, network=replace(recipe.network, checkpoint=True))
    assert 2.9 * forward < plain <= 3 * forward
    assert plain + 0.5 * forward < training_flops(shapes_of(again), *inputs) <= plain + forward


def test_a_line_goes_through_its_measurements_and_back() -> None:
    line = Activations.through(30.0, (4, 100.0), (8, 180.0))
    assert (line.at(4), line.at(8), line.at(16)) == (100.0, 180.0, 340.0)
    assert line.at(0) == 30.0
    assert line.largest(340.0) == 16
    assert line.largest(339.0) == 15
    assert line.largest(29.0) == 0
    with pytest.raises(ValueError, match="micro-batches that differ"):
        Activations.through(0.0, (4, 1.0), (4, 2.0))


def test_a_spread_has_the_median_and_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_training_time_follows_from_the_steps_that_were_timed(tiny: Recipe) -> None:
    long = replace(tiny, train=replace(tiny.train, steps=100, batch_size=8))
    step = Spread(0.5, 0.4, 0.6)
    assert training_seconds(long, step, 8, 3.0) == Spread(50.0, 40.0, 60.0)
    assert training_seconds(long, step, 2, 3.0) == Spread(200.0, 160.0, 240.0)
    shown = replace(long, save=replace(long.save, preview_every=30))  # at 30, 60, 90 and the end
    assert training_seconds(shown, step, 8, 3.0) == Spread(62.0, 52.0, 72.0)
