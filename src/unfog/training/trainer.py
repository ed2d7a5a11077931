"""The loop that trains, for every task; it knows nothing of diffusion.

A step takes the next ``batch_size`` examples by their running position, in micro-batches weighted by their share of
the batch, so that the result does not depend on how the batch is cut. Nothing random is kept between steps: the
task's draws come from an ``Rng`` keyed by example and epoch, and dropout is seeded from (seed, step, player,
micro-batch) inside a fork of torch's generator. What a run needs to continue is therefore its tensors and a few
counters (``Trainer.state``), and a resumed run is equal to an uninterrupted one bit for bit on the same hardware,
thread count and dtype.

In a world of several processes each takes its contiguous part of a step's positions. Gradients, the loss and its parts
are summed over the processes (``spread``), so that all of them see the same numbers and decide alike, and the result is
that of one process but for rounding. Buffers follow process 0, which has seen its own part only.

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
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.checkpoint import JSON, RunState, require_same_tensors
from unfog.data.batch import Batch, Batches
from unfog.diffusion.checks import require
from unfog.diffusion.random import Rng, seed_of
from unfog.tasks.task import Loss, Task
from unfog.training.buffers import Buffers
from unfog.training.config import Parallel, Precision, TrainConfig
from unfog.training.diagnosis import Failed, Piece, diagnose
from unfog.training.ema import Average, WeightAverages
from unfog.training.failures import Failure, foremost
from unfog.training.optim import learning_rate, set_learning_rate
from unfog.training.parallel import World
from unfog.training.player import Player, players_of
from unfog.training.spread import Spread, whole
from unfog.training.step import PlayerStep, TrainStep

PATIENCE = 3
"""Steps in a row with a loss or gradient that is not finite before training stops."""


class NonFiniteError(ArithmeticError):
    """Losses or gradients stayed infinite or undefined.

    Attributes:
        step: the last one, which was not applied either.
    """

    def __init__(self, message: str, step: TrainStep) -> None:
        super().__init__(message)
        self.step = step


class _Cut(NamedTuple):
    """A micro-batch: its examples, where in the batch they begin, their share of it, and whether it is the last."""

    batch: Batch
    place: int
    share: float
    last: bool


class Trainer:
    """Trains the players of a task; iterate over it to train.

    Args:
        task: what is minimised, already on the device where it is to be trained.
        batches: the data.
        config: how to train.
        world: the processes that train together, each with a trainer of the same arguments; one alone unless given.

    Attributes:
        index: steps done.
        examples: examples seen.
        skipped: steps that were not applied because a loss or gradient was not finite.
        averages: averages of the weights, by player.

    Raises:
        ValueError: if the task has no players, one that is not part of the task or cannot name a file, or two that
            share weights; if the world has more processes than a batch has examples; or as ``spread.Sharded``.
    """

    def __init__(self, task: Task, batches: Batches, config: TrainConfig, world: World | None = None) -> None:
        world = world or World.alone()
        require(
            config.batch_size >= world.size,
            f"a batch_size of at least {world.size}, one example for each process, got {config.batch_size}; batch_size "
            f"counts the examples of a step over all processes: raise it, or start fewer processes",
        )
        self.world, self.sharded = world, world.size > 1 and config.parallel is Parallel.SHARD
        self.task, self.batches, self.config = task, batches, config
        self.index = self.examples = self.skipped = 0
        self._skipped_in_row = 0
        self._buffers = Buffers(task)
        self._players = {name: Player(name, module, task, config, world) for name, module in players_of(task).items()}
        self._device = next(iter(self._players.values())).parameters[0].device

    @property
    def averages(self) -> Mapping[str, WeightAverages]:
        """The averages of the weights, by player."""
        return {name: player.ema for name, player in self._players.items()}

    def ema_groups(self) -> dict[str, tuple[str, Average]]:
        """Return the player and kind of each average, by the name of its file."""
        return {
            group: (name, kind) for name, player in self._players.items() for kind, group in player.ema_groups().items()
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
        first, stop = self.world.part(self.config.batch_size)
        batch = self.batches.take(self.examples + first, stop - first)
        waited = time.perf_counter() - began
        require(
            len(batch.ids) == stop - first,
            f"{stop - first} examples from batches.take({self.examples + first}, {stop - first}), got {len(batch.ids)}",
        )
        middle = self.examples + self.config.batch_size / 2
        rate = learning_rate(self.config.optimizer, middle, self.config.total_examples)
        players = {name: self._turn(player, batch, rate) for name, player in self._players.items()}
        self.task.settle(self._gather, applied=all(player.applied for player in players.values()))
        self.world.follow_(*self.task.buffers())
        self.index += 1
        self.examples += self.config.batch_size
        step = TrainStep(self.index, self.examples, players, rate, time.perf_counter() - began, waited)
        self._count_skipped(step)
        return step

    def _gather(self, own: Tensor) -> Tensor:
        """Return the numbers of all examples of a step, given those of this process's part."""
        first, stop = self.world.part(self.config.batch_size)
        numbers = own.new_zeros(self.config.batch_size)
        # Examples that were gone through again only to keep step with other processes stand at the end.
        numbers[first:stop] = own[: stop - first]
        return self.world.sum_(numbers)

    def _turn(self, player: Player, batch: Batch, rate: float) -> PlayerStep:
        """Let one player move: accumulate its gradient, and apply it if it is finite."""
        player.module.train()
        player.optimizer.zero_grad(set_to_none=True)
        self._buffers.keep()
        loss, parts = self._accumulate(player, batch)
        gradients = [p.grad for p in player.parameters if p.grad is not None]
        names = list(parts)
        # The norm is that of the whole gradient already: its mean makes the processes decide alike to the last bit.
        scalars = [loss, player.spread.norm(gradients) / self.world.size, *(parts[name] for name in names)]
        value, size, *rest = self.world.sum_(torch.stack([scalar.to(loss) for scalar in scalars])).tolist()
        applied = math.isfinite(value) and math.isfinite(size)
        if applied:
            clip = self.config.optimizer.clip
            if clip is not None and size > clip:
                torch._foreach_mul_(gradients, clip / size)
            set_learning_rate(player.optimizer, rate)
            player.optimizer.step()
            player.ema.update(self.examples + self.config.batch_size)
        failure = None if applied else self._diagnose(player, batch, value, size)
        return PlayerStep(value, dict(zip(names, rest, strict=True)), size, applied, failure)

    def _diagnose(self, player: Player, batch: Batch, loss: float, norm: float) -> Failure:
        """Find out why a step cannot be applied, and leave everything as it was before the step."""
        self._buffers.restore()
        failed = Failed(self.index + 1, player.name, loss, norm)
        with player.spread.alone() as spread:
            pieces = (
                Piece(
                    cut.batch,
                    partial(self._loss_and_gradient, player, spread, cut),
                    partial(self._describe, player, cut),
                )
                for cut in self._cuts(batch)
            )
            failure = diagnose(failed, self.task, player.module, pieces, compiled=self.config.compile)
        self._buffers.restore()
        return foremost(self.world.everyone(failure))

    def _accumulate(self, player: Player, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradients of the micro-batches; return the loss and its parts, shares of the whole batch's."""
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for cut in self._cuts(batch, even=player.spread.even):
            loss = self._loss_and_gradient(player, player.spread, cut)
            require(
                total is None or loss.parts.keys() == parts.keys(),
                f"the same parts of the loss for every micro-batch, got {list(parts)} and {list(loss.parts)}",
            )
            total = loss.total.detach() * cut.share + (0.0 if total is None else total)
            parts = {name: p.detach() * cut.share + parts.get(name, 0.0) for name, p in loss.parts.items()}
        assert total is not None
        return total, parts

    def _cuts(self, batch: Batch, *, even: bool = False) -> Iterator[_Cut]:
        """Cut this process's part of a batch into micro-batches, on the device.

        Args:
            batch: the part.
            even: whether to bring out as many as the process with the longest part does, the last ones without a share.
        """
        size, count = self.config.batch_size, len(batch.ids)
        micro = self.config.micro_batch or size
        first, _ = self.world.part(size)
        starts = range(0, count, micro)
        longest = -(-size // self.world.size)
        rounds = max(len(starts), -(-longest // micro)) if even else len(starts)
        for number in range(rounds):
            start = min(number * micro, count - 1)
            piece = _piece(batch, start, min(start + micro, count), self._device)
            share = len(piece.ids) / size if number < len(starts) else 0.0
            yield _Cut(piece, first + start, share, number == rounds - 1)

    def _loss_and_gradient(self, player: Player, spread: Spread, cut: _Cut) -> Loss:
        with self._drawing(player, cut.place), spread.piece(last=cut.last):
            with self._autocast():
                loss = spread.loss(cut.batch, self._rng(cut.batch))
            _check_loss(loss)
            spread.backward(loss.total * cut.share)
        return loss

    def _describe(self, player: Player, cut: _Cut) -> Mapping[str, Tensor]:
        with self._drawing(player, cut.place), self._autocast(), torch.no_grad():
            return self.task.describe(cut.batch, player.name, rng=self._rng(cut.batch))

    def _rng(self, piece: Batch) -> Rng:
        return Rng.of(self.config.seed, piece.ids, step=piece.epochs, position=piece.positions, device=self._device)

    @contextmanager
    def _drawing(self, player: Player, place: int) -> Iterator[None]:
        """Seed torch's generators for what networks draw themselves in a micro-batch, and restore them afterwards."""
        kind = self._device.type
        with torch.random.fork_rng([] if kind == "cpu" else [self._device], device_type=_forked(kind)):
            torch.manual_seed(seed_of("dropout", self.config.seed, self.index, player.name, place))
            yield

    def _autocast(self) -> torch.autocast:
        half = self.config.precision is Precision.BFLOAT16
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half)

    def _count_skipped(self, step: TrainStep) -> None:
        if step.applied:
            self._skipped_in_row = 0
            return
        self.skipped += 1
        self._skipped_in_row += 1
        if self._skipped_in_row >= PATIENCE:
            raise NonFiniteError(
                f"{PATIENCE} steps in a row, up to step {step.index}, had a loss or gradient that is not finite; none "
                f"of them was applied. The last: {'; '.join(map(str, step.failures))}. The checkpoints before are "
                f"whole; where neither data nor weights are at fault, train anew with a lower learning rate or a "
                f"longer warm-up.",
                step,
            )

    def state(self) -> RunState:
        """Return copies, on the CPU, of everything that is needed to continue; all processes call it together."""
        copies = {
            group: {name: t.detach().to("cpu", copy=True).contiguous() for name, t in whole(tensors).items()}
            for group, tensors in self.tensors().items()
        }
        return RunState(self.index, copies, self.numbers())

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors of the state, by part and name: not copied, and sharded where the weights are."""
        groups: dict[str, Mapping[str, Tensor]] = {}
        for player in self._players.values():
            groups.update(player.tensors())
        if others := self._others():
            groups["task"] = others
        return groups

    def numbers(self) -> dict[str, JSON]:
        """Return the counters and the seed of the state."""
        return {
            "examples": self.examples,
            "seed": self.config.seed,
            "skipped": self.skipped,
            "skipped_in_row": self._skipped_in_row,
            "ema_time": {name: player.ema.time for name, player in self._players.items()},
            "ema_updates": {name: player.ema.updates for name, player in self._players.items()},
        }

    def require_fit(self, state: RunState) -> None:
        """Raise unless a state was made by a trainer of the same task and configuration; values are not looked at.

        Raises:
            ValueError: lists every part or tensor that is missing, unexpected or of another shape or dtype; or if the
                seed is another one.
        """
        expected = self.tensors()
        wrong = sorted(set(expected) ^ set(state.tensors))
        require(not wrong, f"the saved parts {sorted(expected)}, got {sorted(state.tensors)}; differing: {wrong}")
        for group, tensors in expected.items():
            require_same_tensors(tensors, state.tensors[group], group)
        seed = state.numbers["seed"]
        require(
            seed == self.config.seed,
            f"the seed {seed} of the saved run, got {self.config.seed}; another seed needs a run of its own",
        )

    def load_state(self, state: RunState) -> None:
        """Continue from a state, made by a trainer of the same task and configuration.

        Args:
            state: the same in all processes; its tensors whole, or sharded as ``tensors()`` is.

        Raises:
            ValueError: as ``require_fit``, before anything is changed.
        """
        self.require_fit(state)
        tensors = self._shared_out(state.tensors) if self.sharded else state.tensors
        numbers = state.numbers
        times, updates = numbers["ema_time"], numbers.get("ema_updates", {})
        assert isinstance(times, dict)
        assert isinstance(updates, dict)
        for name, player in self._players.items():
            # States without this count hold power averages alone, which take no notice of it.
            player.load(tensors, _integer(times[name]), _integer(updates.get(name, 0)))
        with torch.no_grad():
            for name, tensor in self._others().items():
                tensor.copy_(tensors["task"][name])
        self.index = state.step
        self.examples = _integer(numbers["examples"])
        self.skipped = _integer(numbers["skipped"])
        self._skipped_in_row = _integer(numbers["skipped_in_row"])

    def _shared_out(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        from unfog.training.sharding import sharded_like

        own = self.tensors()
        return {group: sharded_like(own[group], tensors) for group, tensors in groups.items()}

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
