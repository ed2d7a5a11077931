"""What is trained: a module with its optimiser and the averages of its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unfog.diffusion.checks import require
from unfog.tasks.task import Task
from unfog.training.config import Parallel, TrainConfig
from unfog.training.ema import Average, WeightAverages
from unfog.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from unfog.training.parallel import World
from unfog.training.spread import spread_over


class Player:
    """A module that is trained, with its optimiser and its averages.

    Args:
        name: what the task calls it.
        module: laid out, compiled and spread over the processes here, in place.
        task: that it belongs to.
        config: how to train.
        world: the processes that train together.

    Raises:
        ValueError: if the module cannot be compiled or sharded.
    """

    def __init__(self, name: str, module: nn.Module, task: Task, config: TrainConfig, world: World) -> None:
        sharded = world.size > 1 and config.parallel is Parallel.SHARD
        if config.channels_last and not sharded:
            _to_channels_last(module)
        # Sharded networks would be compiled block by block. With torch 2.13 a block whose input is not contiguous, as
        # the tokens of a DiT are, then has wrong gradients on a processor, by some per cent.
        require(
            not (config.compile and sharded),
            "compile=False with parallel=shard, got compile=True; compiled blocks are not trusted yet: use "
            "parallel=replicate to compile",
        )
        if config.compile:
            _require_compilable(name, module)
            module.compile()
        self.name = name
        self.module = module
        self.spread = spread_over(world, config.parallel, task, name, module, channels_last=config.channels_last)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, module)
        self.ema = WeightAverages(module, config.ema)

    def group(self, part: str) -> str:
        """Name a file: the player called ``model`` goes without its name."""
        return part if self.name == "model" else f"{self.name}-{part}"

    def ema_groups(self) -> dict[Average, str]:
        """Name the file of each average."""
        return {kind: self.group(kind.name) for kind in self.ema.kinds}

    @property
    def optimizer_group(self) -> str:
        """Name the file of the optimiser's state."""
        return f"state/{self.group('optimizer')}"

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return weights, averages and optimiser state, by file and name, not copied."""
        averages = {group: self.ema.weights(kind) for kind, group in self.ema_groups().items()}
        return {
            self.name: self.module.state_dict(),
            **averages,
            self.optimizer_group: optimizer_tensors(self.optimizer, self.module),
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], ema_time: int, ema_updates: int) -> None:
        """Take saved tensors over, in place."""
        self.module.load_state_dict(tensors[self.name])
        load_optimizer_tensors(self.optimizer, self.module, tensors[self.optimizer_group])
        averages = {kind: tensors[group] for kind, group in self.ema_groups().items()}
        self.ema.load(averages, ema_time, ema_updates)


def players_of(task: Task) -> dict[str, nn.Module]:
    """Return the players of a task by name.

    Raises:
        ValueError: if it has none, one that is not part of it or cannot name a file, or two that share weights.
    """
    players = dict(task.players())
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
    return players


@torch.no_grad()
def _to_channels_last(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _require_compilable(name: str, module: nn.Module) -> None:
    # Observed with torch 2.13: it traces into its own containers, but does not start at one.
    require(
        not type(module).__module__.startswith("torch.nn"),
        f"a network of a class of its own to compile, got {type(module).__name__} for {name!r}, which torch leaves as "
        f"it is; wrap it in a module, or train with compile=False",
    )
