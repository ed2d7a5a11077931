"""The loop that trains, for every task; it knows nothing of diffusion.

A step takes the next ``batch_size`` examples by their running position, in micro-batches weighted by their share of
the batch, so that the result does not depend on how the batch is cut. Nothing random is kept between steps: the
task's draws come from an ``Rng`` keyed by example and epoch, and dropout is seeded from (seed, step, player,
micro-batch) inside a fork of torch's generator. What a run needs to continue is therefore its tensors and a few
counters (``Trainer.state``), and a resumed run is equal to an uninterrupted one bit for bit on the same hardware,
thread count and dtype.

Compiling happens in place, module by module (``nn.Module.compile`` of each player): the loop, the task's loss and the
optimiser stay ordinary Python, and the names of the weights do not change.

Under ``Precision.BFLOAT16`` the whole of ``Task.loss`` runs under autocast, since a task may call other methods of its
networks than ``forward``: weights, optimiser and averages stay float32, and a task that multiplies matrices outside its
networks switches autocast off around that.

There is one read from the device per player and step. It brings the loss, its parts and the gradient's norm together,
because whether the norm is finite decides whether the step is applied at all.
"""

import math
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from unfog.checkpoint import JSON, RunState, require_same_tensors
from unfog.data.batch import Batch, Batches
from unfog.diffusion.checks import require
from unfog.diffusion.random import Rng, seed_of
from unfog.tasks.task import Loss, Task
from unfog.training.config import Precision, TrainConfig
from unfog.training.ema import PowerEMA, format_length
from unfog.training.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from unfog.training.step import PlayerStep, TrainStep

PATIENCE = 3
"""Steps in a row with a loss or gradient that is not finite before training stops."""


class NonFiniteError(ArithmeticError):
    """Losses or gradients stayed infinite or undefined."""


class _Player:
    """A module that is trained, with its optimiser and its averages."""

    def __init__(self, name: str, module: nn.Module, config: TrainConfig) -> None:
        self.name = name
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, module)
        self.ema = PowerEMA(module, config.ema)

    def group(self, part: str) -> str:
        """Name a file: the player called ``model`` goes without its name."""
        return part if self.name == "model" else f"{self.name}-{part}"

    def ema_groups(self) -> dict[float, str]:
        return {length: self.group(f"ema-{format_length(length)}") for length in self.ema.lengths}

    @property
    def optimizer_group(self) -> str:
        return f"state/{self.group('optimizer')}"

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        averages = {group: self.ema.weights(length) for length, group in self.ema_groups().items()}
        return {
            self.name: self.module.state_dict(),
            **averages,
            self.optimizer_group: optimizer_tensors(self.optimizer, self.module),
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], ema_time: int) -> None:
        self.module.load_state_dict(tensors[self.name])
        load_optimizer_tensors(self.optimizer, self.module, tensors[self.optimizer_group])
        self.ema.load({length: tensors[group] for length, group in self.ema_groups().items()}, ema_time)


class Trainer:
    """Trains the players of a task; iterate over it to train.

    Args:
        task: what is minimised, already on the device where it is to be trained.
        batches: the data.
        config: how to train.

    Attributes:
        index: steps done.
        examples: examples seen.
        skipped: steps that were not applied because a loss or gradient was not finite.
        averages: averages of the weights, by player.

    Raises:
        ValueError: if the task has no players, one that is not part of the task or cannot name a file, or two that
            share weights.
    """

    def __init__(self, task: Task, batches: Batches, config: TrainConfig) -> None:
        modules = dict(task.players())
        _require_apart(task, modules)
        if config.channels_last:
            for module in modules.values():
                _to_channels_last(module)
        if config.compile:
            for name, module in modules.items():
                # Observed with torch 2.13: it traces into its own containers, but does not start at one.
                require(
                    not type(module).__module__.startswith("torch.nn"),
                    f"a network of a class of its own to compile, got {type(module).__name__} for {name!r}, which "
                    f"torch leaves as it is; wrap it in a module, or train with compile=False",
                )
                module.compile()
        self.task, self.batches, self.config = task, batches, config
        self.index = self.examples = self.skipped = 0
        self._skipped_in_row = 0
        self._players = {name: _Player(name, module, config) for name, module in modules.items()}
        self._device = next(iter(self._players.values())).parameters[0].device

    @property
    def averages(self) -> Mapping[str, PowerEMA]:
        """The averages of the weights, by player."""
        return {name: player.ema for name, player in self._players.items()}

    def ema_groups(self) -> dict[str, tuple[str, float]]:
        """Return the player and length of each average, by the name of its file."""
        return {
            group: (name, length)
            for name, player in self._players.items()
            for length, group in player.ema_groups().items()
        }

    def __iter__(self) -> Iterator[TrainStep]:
        """Train until ``config.steps`` steps are done."""
        while self.index < self.config.steps:
            yield self.advance()

    def advance(self) -> TrainStep:
        """Take one step, whatever ``config.steps`` says.

        Raises:
            NonFiniteError: at the third step in a row that could not be applied.
        """
        began = time.perf_counter()
        batch = self.batches.take(self.examples, self.config.batch_size)
        waited = time.perf_counter() - began
        require(
            len(batch.ids) == self.config.batch_size,
            f"{self.config.batch_size} examples from batches.take({self.examples}, {self.config.batch_size}), "
            f"got {len(batch.ids)}",
        )
        middle = self.examples + self.config.batch_size / 2
        rate = learning_rate(self.config.optimizer, middle, self.config.total_examples)
        players = {name: self._turn(player, batch, rate) for name, player in self._players.items()}
        self.index += 1
        self.examples += self.config.batch_size
        step = TrainStep(self.index, self.examples, players, rate, time.perf_counter() - began, waited)
        self._count_skipped(step)
        return step

    def _turn(self, player: _Player, batch: Batch, rate: float) -> PlayerStep:
        """Let one player move: accumulate its gradient, and apply it if it is finite."""
        player.module.train()
        player.optimizer.zero_grad(set_to_none=True)
        loss, parts = self._accumulate(player, batch)
        gradients = [p.grad for p in player.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        names = list(parts)
        scalars = [loss, norm, *(parts[name] for name in names)]
        value, size, *rest = torch.stack([scalar.to(loss) for scalar in scalars]).tolist()
        applied = math.isfinite(value) and math.isfinite(size)
        if applied:
            clip = self.config.optimizer.clip
            if clip is not None and size > clip:
                torch._foreach_mul_(gradients, clip / size)
            set_learning_rate(player.optimizer, rate)
            player.optimizer.step()
            player.ema.update(self.examples + self.config.batch_size)
        return PlayerStep(value, dict(zip(names, rest, strict=True)), size, applied)

    def _accumulate(self, player: _Player, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradients of the micro-batches; return the loss and its parts over the whole batch."""
        size = self.config.batch_size
        micro = self.config.micro_batch or size
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for number, start in enumerate(range(0, size, micro)):
            piece = _piece(batch, start, min(start + micro, size), self._device)
            share = len(piece.ids) / size
            loss = self._loss_and_gradient(player, piece, number, share)
            require(
                total is None or loss.parts.keys() == parts.keys(),
                f"the same parts of the loss for every micro-batch, got {list(parts)} and {list(loss.parts)}",
            )
            total = loss.total.detach() * share + (0.0 if total is None else total)
            parts = {name: p.detach() * share + parts.get(name, 0.0) for name, p in loss.parts.items()}
        assert total is not None
        return total, parts

    def _loss_and_gradient(self, player: _Player, piece: Batch, number: int, share: float) -> Loss:
        rng = Rng.of(self.config.seed, piece.ids, step=piece.epochs, position=piece.positions, device=self._device)
        half = self.config.precision is Precision.BFLOAT16
        kind = self._device.type
        with torch.random.fork_rng([] if kind == "cpu" else [self._device], device_type=_forked(kind)):
            torch.manual_seed(seed_of("dropout", self.config.seed, self.index, player.name, number))
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                loss = self.task.loss(piece, player.name, rng=rng)
            _check_loss(loss)
            # What flows through another player on the way leaves no gradient in its weights, and none is computed.
            torch.autograd.backward(loss.total * share, inputs=player.parameters)
        return loss

    def _count_skipped(self, step: TrainStep) -> None:
        if step.applied:
            self._skipped_in_row = 0
            return
        self.skipped += 1
        self._skipped_in_row += 1
        if self._skipped_in_row >= PATIENCE:
            told = ", ".join(f"{name}: loss {p.loss}, gradient norm {p.grad_norm}" for name, p in step.players.items())
            raise NonFiniteError(
                f"{PATIENCE} steps in a row, up to step {step.index}, had a loss or gradient that is not finite "
                f"({told}). None of them was applied. Lower the learning rate or lengthen the warm-up, and look for "
                f"values in the data that are not finite."
            )

    def state(self) -> RunState:
        """Return copies, on the CPU, of everything that is needed to continue."""
        groups: dict[str, Mapping[str, Tensor]] = {}
        for player in self._players.values():
            groups.update(player.tensors())
        if others := self._others():
            groups["task"] = others
        copies = {
            group: {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            for group, tensors in groups.items()
        }
        numbers: dict[str, JSON] = {
            "examples": self.examples,
            "seed": self.config.seed,
            "skipped": self.skipped,
            "skipped_in_row": self._skipped_in_row,
            "ema_time": {name: player.ema.time for name, player in self._players.items()},
        }
        return RunState(self.index, copies, numbers)

    def load_state(self, state: RunState) -> None:
        """Continue from a state, made by a trainer of the same task and configuration.

        Raises:
            ValueError: lists every part or tensor that is missing, unexpected or of another shape or dtype; or if the
                seed is another one.
        """
        expected: dict[str, Mapping[str, Tensor]] = {}
        for player in self._players.values():
            expected.update(player.tensors())
        if others := self._others():
            expected["task"] = others
        wrong = sorted(set(expected) ^ set(state.tensors))
        require(not wrong, f"the saved parts {sorted(expected)}, got {sorted(state.tensors)}; differing: {wrong}")
        for group, tensors in expected.items():
            require_same_tensors(tensors, state.tensors[group], group)
        numbers = state.numbers
        require(
            numbers["seed"] == self.config.seed,
            f"the seed {numbers['seed']} of the saved run, got {self.config.seed}; another seed needs a run of its own",
        )
        times = numbers["ema_time"]
        assert isinstance(times, dict)
        for name, player in self._players.items():
            player.load(state.tensors, _integer(times[name]))
        with torch.no_grad():
            for name, tensor in others.items():
                tensor.copy_(state.tensors["task"][name])
        self.index = state.step
        self.examples = _integer(numbers["examples"])
        self.skipped = _integer(numbers["skipped"])
        self._skipped_in_row = _integer(numbers["skipped_in_row"])

    def _others(self) -> dict[str, Tensor]:
        """Return what the task holds besides its players: targets, running statistics.

        A frozen teacher counts too unless the task holds it outside its registered modules.
        """
        owned = {
            id(tensor)
            for player in self._players.values()
            for tensor in player.module.state_dict(keep_vars=True).values()
        }
        entries = self.task.state_dict(keep_vars=True).items()
        return {name: tensor for name, tensor in entries if id(tensor) not in owned}


def _require_apart(task: Task, players: Mapping[str, nn.Module]) -> None:
    require(bool(players), f"a task with at least one player, got {type(task).__name__} without any")
    modules = {id(module) for module in task.modules()}
    owner: dict[int, str] = {}
    for name, module in players.items():
        require(
            name.isidentifier() and name not in ("task", "state"),
            f"a player named like a variable, and not task or state, which name files of a checkpoint; got {name!r}",
        )
        require(
            id(module) in modules,
            f"player {name!r} to be a module of the task; assign it to an attribute in its constructor",
        )
        for parameter in module.parameters():
            other = owner.setdefault(id(parameter), name)
            require(other == name, f"players without common weights; {other!r} and {name!r} share some")


@torch.no_grad()
def _to_channels_last(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _piece(batch: Batch, start: int, stop: int, device: torch.device) -> Batch:
    """Cut examples out of a batch and bring them to the device."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[start:stop].to(device, non_blocking=True)

    values = {name: cut(tensor) for name, tensor in batch.values.items()}
    return Batch(values, cut(batch.ids), cut(batch.epochs), cut(batch.positions))


def _check_loss(loss: Loss) -> None:
    if loss.total.ndim != 0 or loss.total.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"a task's loss must be a scalar of float32 or float64, got {loss.total.dtype} of shape "
            f"{tuple(loss.total.shape)}; convert what the network answers with .float() before taking the mean"
        )


def _forked(kind: str) -> str:
    # fork_rng forks the CPU's generator always; "cuda" with no devices means that alone.
    return "cuda" if kind == "cpu" else kind


def _integer(value: JSON) -> int:
    if not isinstance(value, int):
        raise ValueError(f"expected an integer in the saved state, got {value!r}")
    return value
