"""Trains in several processes, for test_parallel.py, which looks at what is brought out.

torch is imported once, and each process is a fork of this one, which itself never trains and so has no threads. Called
with a folder and the names of scenarios; writes into the folder, and prints one JSON object: by scenario, what each of
its processes returned.
"""

import contextlib
import functools
import io
import json
import math
import os
import random
import shutil
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported by what is made for training, which costs a second in each process
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor
from tiny import TinyBatches, TinyTask, tiny_config
from torch import Tensor, nn

from unfog.checkpoint import RunState, list_checkpoints, load_checkpoint, write_checkpoint
from unfog.data.batch import Batch
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.uncertainty import WithUncertainty
from unfog.diffusion.nn.unet import UNet, UNetConfig
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Importance, Stratified, Uniform
from unfog.diffusion.weighting import P2, Constant, Uncertainty
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.tasks.denoising import Denoising
from unfog.tasks.task import Loss, Task
from unfog.training.config import Parallel, TrainConfig
from unfog.training.optim import OptimizerConfig
from unfog.training.parallel import World, joined
from unfog.training.run import run_training
from unfog.training.signals import Stop
from unfog.training.spread import blocks_of, whole
from unfog.training.trainer import Trainer

REPLICATE, SHARD = Parallel.REPLICATE, Parallel.SHARD
Scenario = Callable[[World, Path], object]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 9)
        self.outer = nn.Linear(9, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.outer(torch.tanh(self.inner(x)))
        return out


class Stack(nn.Module):
    """Blocks, a convolution, a weight that takes no part, and widths that no number of processes divides."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.out = nn.Linear(12, 8)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.out(self.conv(x.view(-1, 2, 2, 2)).flatten(1))
        return out


class StackTask(TinyTask):
    """The tiny task with a network of blocks; computes in float64 and without dropout."""

    def __init__(self, spoiled: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.network = Stack()  # type: ignore[assignment]
        self.spoiled = spoiled

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        loss = super().loss(batch, player, rng=rng)
        bad = any(int(position) in self.spoiled for position in batch.positions)
        return Loss(loss.total * (math.nan if bad else 1.0), loss.parts)

    def describe(self, batch: Batch, player: str, *, rng: Rng) -> Mapping[str, Tensor]:
        bad = torch.tensor([int(position) in self.spoiled for position in batch.positions])
        return {"loss": torch.where(bad, math.nan, 1.0)}


def stack_trainer(world: World, how: Parallel, task: Task | None = None, **changes: Any) -> Trainer:
    config = tiny_config(25, **{"batch_size": 10, "micro_batch": None, "parallel": how, **changes})
    return Trainer(task or made(StackTask), TinyBatches(torch.float64), config, world)


def made(kind: Callable[[], Task]) -> Task:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return kind().double()


def saved(folder: Path, name: str, state: RunState) -> None:
    """Store the whole state for the tests, as a plain checkpoint of a run of that name."""
    write_checkpoint(folder / name, state)


# --- equal to one process -------------------------------------------------------------------------------------------


def reference(world: World, folder: Path) -> object:
    told = {}
    for micro in (None, 6):
        trainer = stack_trainer(world, REPLICATE, micro_batch=micro)
        steps = list(trainer)
        told[str(micro)] = {"loss": [step.loss for step in steps], "norm": [step.grad_norm for step in steps]}
        saved(folder, f"one-{micro}", trainer.state())
    return told


def equal(world: World, folder: Path) -> object:
    """25 steps in both modes with one and with several micro-batches, of which processes have different numbers."""
    told = {}
    for how in Parallel:
        for micro in (None, 2):
            trainer = stack_trainer(world, how, micro_batch=micro)
            steps = list(trainer)
            state = trainer.state()
            name = f"{world.size}-{how.value}-{micro}"
            told[name] = {"loss": [step.loss for step in steps], "norm": [step.grad_norm for step in steps]}
            if world.leads:
                saved(folder, name, state)
    return told


# --- what is gathered, decided and refused together -----------------------------------------------------------------


def together(world: World, folder: Path) -> object:
    """The parts of a world, on four processes."""
    start, stop = world.part(3)  # the last process has none
    mine = torch.arange(start, stop).view(-1, 1) * torch.ones(2) if start < stop else None
    gathered = world.gathered(mine, 3)
    tensors = [torch.full((2,), float(world.rank)), torch.tensor(world.rank), torch.full((1, 2), float(world.rank))]
    world.follow_(*tensors)
    order = folder / "order"
    fast = replace(world, local_rank=world.rank % 2)  # two machines of two processes
    with fast.in_turn(), order.open("a") as file:
        file.write(f"{fast.local_rank}\n")

    def fail() -> None:
        raise FileExistsError("it is there")

    try:
        world.led(fail)
        failure = "none"
    except (FileExistsError, RuntimeError) as error:
        failure = f"{type(error).__name__}: {error}"
    refused = []
    for changes in ({"batch_size": 3}, {"compile": True}):
        try:
            stack_trainer(world, SHARD, **changes)
        except ValueError as error:
            refused.append(str(error))
    return {
        "gathered": None if gathered is None else gathered.tolist(),
        "followed": [tensor.tolist() for tensor in tensors],
        "led": world.led(lambda: world.rank),
        "everyone": world.everyone(world.rank),
        "largest": world.largest(world.rank),
        "sum": float(world.sum_(torch.tensor(1.0))),
        "order": world.led(lambda: order.read_text().split()),
        "failure": failure,
        "refused": refused,
    }


def failing(world: World, folder: Path) -> object:
    """A loss that is not finite in one process, in step 2; a stop that another process is asked for in step 4."""
    told = {}
    for how in Parallel:
        task = made(lambda: StackTask(frozenset({17})))  # of process 1, in the second step
        trainer = stack_trainer(world, how, task, micro_batch=2)
        stop = Stop()
        applied, losses, failures = [], [], []
        for step in run_training(trainer, folder / f"failing-{how.value}", checkpoint_every=3, stop=stop):
            applied.append(step.applied)
            losses.append(step.loss)
            failures += [failure.record() for failure in step.failures]
            if step.index == 3 and world.rank == 1:
                stop.request(signal.SIGTERM)
        told[how.value] = {
            "applied": applied,
            "failures": failures,
            "losses": losses[2:],
            "signal": stop.signal,
            "index": trainer.index,
        }
    return told


def spoiled_alone(world: World, folder: Path) -> object:
    """What one process does at the same failure."""
    trainer = stack_trainer(world, REPLICATE, made(lambda: StackTask(frozenset({17}))))
    steps = [trainer.advance() for _ in range(4)]
    saved(folder, "failing-one", trainer.state())
    return {"losses": [step.loss for step in steps[2:]], "failure": steps[1].failures[0].record()}


def drawing(world: World, folder: Path) -> object:
    """Dropout differs between processes and repeats itself; buffers are the same everywhere after a step."""
    masks = []
    for _ in range(2):
        trainer = Trainer(made(TinyTask), TinyBatches(torch.float64), tiny_config(2, batch_size=8), world)
        dropout = next(part for part in trainer.task.modules() if isinstance(part, nn.Dropout))
        seen: list[Any] = []
        dropout.register_forward_hook(lambda module, args, out, seen=seen: seen.append((out == 0).tolist()))
        list(trainer)
        masks.append(seen)
    return {
        "masks": masks,
        "buffers": {name: buffer.tolist() for name, buffer in trainer.task.named_buffers()},
    }


# --- checkpoints ----------------------------------------------------------------------------------------------------


def checkpoints(world: World, folder: Path) -> object:
    """Ten steps sharded over four processes, saved at 5 and 10."""
    trainer = stack_trainer(world, SHARD, snapshot_every=5)
    for step in run_training(trainer, folder / "sharded", checkpoint_every=5):
        if step.index == 10:
            break
    state = trainer.state()
    if world.leads:
        saved(folder, "sharded-whole", state)
        whole = load_checkpoint(list_checkpoints(folder / "sharded")[0])
        return {
            "equal": [
                f"{group}/{name}"
                for group, tensors in state.tensors.items()
                for name, tensor in tensors.items()
                if not torch.equal(tensor, whole.tensors[group][name])
            ],
            "numbers": whole.numbers == state.numbers,
        }
    return None


def copies(world: World, folder: Path) -> object:
    """Copy the sharded run for those who go on with it, and damage one of the copies."""
    for name in ("damaged", "broken", *(f"continued-{size}-{how.value}" for size in (1, 2) for how in Parallel)):
        shutil.copytree(folder / "sharded", folder / name)
    for name in ("damaged", "broken"):
        file = list_checkpoints(folder / name)[0] / "model.shard-00001.safetensors"
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    return None


def continued(world: World, folder: Path) -> object:
    """The rest of that run with another number of processes, in both modes."""
    told = {}
    for how in Parallel:
        name = f"continued-{world.size}-{how.value}"
        trainer = stack_trainer(world, how)
        list(run_training(trainer, folder / name, checkpoint_every=100, resume=True))
        told[name] = trainer.index
    return told


def damaged(world: World, folder: Path) -> object:
    """A sharded checkpoint of which one process finds a file damaged: all of them use the one before."""
    trainer = stack_trainer(world, SHARD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps = run_training(trainer, folder / "damaged", checkpoint_every=100, resume=True)
    index = trainer.index
    steps.close()  # type: ignore[attr-defined]
    told = [str(warning.message) for warning in caught]
    other = stack_trainer(world, SHARD, seed=8)
    try:
        run_training(other, folder / "damaged", checkpoint_every=100, resume=True)
        refused = "not"
    except (ValueError, RuntimeError) as error:
        refused = str(error)
    return {"index": index, "told": [text for text in told if "damaged" in text], "refused": refused}


# --- real networks in float32 ----------------------------------------------------------------------------------------


class Pictures:
    def take(self, start: int, count: int) -> Batch:
        positions = torch.arange(start, start + count)
        return Batch(
            {"x0": Rng.of(3, positions).normal((1, 8, 8), Purpose.SCRATCH)}, positions, positions * 0, positions
        )


def unet() -> nn.Module:
    return UNet(UNetConfig(1, 1, widths=(8, 8), blocks=(1, 1), attention=(1,), groups=4, checkpoint=True))


def dit() -> nn.Module:
    return DiT(DiTConfig(1, 1, patch=4, dim=16, depth=2, heads=2))


def networks(world: World, folder: Path) -> object:
    """Gradients of the first step and the loss of eight, of a U-Net and a transformer."""
    told = {}
    for kind in (unet, dit):
        for how in (SHARD,) if world.size > 1 else (REPLICATE,):
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                network = kind()
                for parameter in network.parameters():  # zeros at the end would hide all but the last layer
                    nn.init.normal_(parameter, std=0.1)
            task = Denoising(
                NetworkDenoiser(network, Gaussian(Cosine()), V()), Unconditional(), Uniform(), Constant(V())
            )
            config = TrainConfig(
                8, 6, 2, parallel=how, channels_last=True, optimizer=OptimizerConfig(lr=1e-3, clip=None)
            )
            trainer = Trainer(task, Pictures(), config, world)
            first = trainer.advance()
            gradients = whole({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
            told[f"{kind.__name__}-{how.value}"] = {
                "gradients": {name: gradient.flatten().tolist() for name, gradient in gradients.items()},
                "losses": [first.loss, *(step.loss for step in trainer)],
                "blocks": len(blocks_of(network)),
            }
    return told if world.leads else None


def beside(world: World, folder: Path) -> object:
    """Losses, draws and uncertainties that are learned beside a network, and kept by the task."""
    told = {}
    for how in Parallel if world.size > 1 else (REPLICATE,):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            network = WithUncertainty(unet(), 8)
        times = Importance(Stratified(Uniform()), levels=3, history=2)
        task = Denoising(
            NetworkDenoiser(network, Gaussian(Cosine()), V()), Unconditional(), times, Uncertainty(P2(), 8)
        )
        # Of nine examples two processes have five and four, in three and in two micro-batches.
        config = TrainConfig(8, 9, 2, parallel=how, optimizer=OptimizerConfig(lr=1e-2, clip=None))
        trainer = Trainer(task, Pictures(), config, world)
        losses = [step.loss for step in trainer]
        state = trainer.state().tensors
        told[how.value] = {
            "losses": losses,
            "history": state["task"]["history.losses"].tolist(),
            "counts": state["task"]["history.counts"].tolist(),
            "uncertainty": state["model"]["out.weight"].flatten().tolist(),
        }
    return told


# --- the command line -----------------------------------------------------------------------------------------------

DIGITS = ["train.steps=6", "train.batch_size=10", "network.widths=[32]", "network.blocks=[1]", "network.attention=[]"]
DIGITS += ["network.middle_attention=false", "data.limit=40", "save.checkpoint_every=2", "save.log_every=1"]


def command(world: World, folder: Path) -> object:
    """Train digits by the command line in two processes, and sample in as many as there are."""
    from unfog.cli import main

    os.environ["UNFOG_CACHE"] = str(folder / "cache")
    run, samples = folder / "digits", folder / f"samples-{world.size}"
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        ends = []
        if world.size > 1:
            ends.append(main(["train", "digits", *DIGITS, "train.parallel=shard", "--out", str(run), "--no-report"]))
            ends.append(main(["train", "digits", *DIGITS, "--out", str(run)]))
        ends.append(main(["sample", str(run), "-n", "5", "--steps", "3", "--out", str(samples)]))
    return {"ends": ends, "told": told.getvalue()}


def evaluation(world: World, folder: Path) -> object:
    """Measure that run by the command line with the smallest of networks, after ``command``."""
    from unfog.cli import evaluate, main
    from unfog.evaluation.classifier import Budget
    from unfog.evaluation.features import FeatureConfig
    from unfog.evaluation.measure import Effort, measure

    os.environ["UNFOG_CACHE"] = str(folder / "cache")
    budget = Budget(steps=2, epochs=1, batch_size=8, width=2)
    effort = Effort(FeatureConfig(budget=budget), budget, resamples=20, loss_examples=8)
    evaluate.measure = functools.partial(measure, effort=effort)  # type: ignore[assignment]
    run = folder / "digits"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        end = main(["evaluate", str(run), "--samples", "31", "--steps", "2"])
    scores = json.loads((run / "evaluation.json").read_text())["scores"] if world.leads else None
    return {"end": end, "scores": scores}


def undisturbed(world: World, folder: Path) -> object:
    """What ``worker`` does, without torchrun and without a kill."""
    from unfog.cli import main

    os.environ["UNFOG_CACHE"] = str(folder / "cache")
    return main(["train", "digits", *DIGITS, "network.dropout=0.1", "--out", str(folder / "plain"), "--no-report"])


SCENARIOS: dict[str, tuple[int, Scenario]] = {
    "reference": (1, reference),
    "equal-2": (2, equal),
    "equal-4": (4, equal),
    "together": (4, together),
    "failing": (2, failing),
    "failing-one": (1, spoiled_alone),
    "drawing": (2, drawing),
    "checkpoints": (4, checkpoints),
    "copies": (1, copies),
    "continued-1": (1, continued),
    "continued-2": (2, continued),
    "damaged": (2, damaged),
    "command-2": (2, command),
    "command-1": (1, command),
    "evaluation-2": (2, evaluation),
    "evaluation-1": (1, evaluation),
    "undisturbed": (2, undisturbed),
    "networks-1": (1, networks),
    "networks-2": (2, networks),
    "beside-1": (1, beside),
    "beside-2": (2, beside),
}


def in_processes(size: int, scenario: Scenario, folder: Path) -> list[object]:
    """Run a scenario in forks of this process that form a world; return what each of them returned."""
    answers, ends = started(size, scenario, folder)
    if ends != [0] * size:
        raise RuntimeError(f"processes ended with {ends}")
    return [json.loads(answer) for answer in answers]


def started(size: int, scenario: Scenario, folder: Path) -> tuple[list[str], list[int]]:
    """Run a scenario in forks; return their answers and how they ended. Where one fails, all are killed, as torchrun
    does it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = [folder / f".answer-{rank}" for rank in range(size)]
    children = {}
    for rank in range(size):
        child = os.fork()
        if child == 0:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
            status = 1
            try:
                with joined() as world:
                    answers[rank].write_text(json.dumps(scenario(world, folder)))
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        children[child] = rank
    ends = [0] * size
    left = dict(children)
    while left:
        child, status = os.wait()
        ends[left.pop(child)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in left:
                os.kill(other, signal.SIGKILL)
    return [answer.read_text() if answer.exists() else "" for answer in answers], ends


# --- killed runs ----------------------------------------------------------------------------------------------------

KILLED_STEPS = 24


def lasting(how: Parallel, name: str, wait: float = 0.0) -> Scenario:
    """Train with dropout and buffers in a folder, and let one process be killed after some seconds, but 0."""

    def scenario(world: World, folder: Path) -> object:
        network = made(DropoutTask)
        config = tiny_config(KILLED_STEPS, batch_size=9, micro_batch=2, parallel=how, snapshot_every=4)
        trainer = Trainer(network, TinyBatches(torch.float64), config, world)
        steps = run_training(trainer, folder / name, checkpoint_every=2, resume=True)
        if wait and world.rank == int(wait * 1e6) % world.size:
            signal.setitimer(signal.ITIMER_REAL, wait)  # SIGALRM is not handled, and ends it wherever it is
        list(steps)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return trainer.index

    return scenario


class DropoutTask(StackTask):
    def __init__(self) -> None:
        super().__init__()
        self.network.out = nn.Sequential(nn.Dropout(0.3), nn.Linear(12, 8))  # type: ignore[assignment]


def killed(folder: Path, how: Parallel, size: int, kills: int) -> dict[str, object]:
    """Kill a run at random instants until it was killed so often, then let it end."""
    in_processes(size, lasting(how, f"plain-{how.value}"), folder)
    chance = random.Random(how.value)
    wait, done, ends = 0.05, 0, []
    while done < kills:
        _, ended = started(size, lasting(how, f"killed-{how.value}", wait * chance.uniform(0.3, 1.0)), folder)
        ends.append(ended)
        if ended == [0] * size:  # it came to its end before: begin again, with what is left of the kills
            shutil.rmtree(folder / f"killed-{how.value}")
            wait /= 2
            continue
        done += 1
        wait *= 1.1  # so that it comes forward
    in_processes(size, lasting(how, f"killed-{how.value}"), folder)
    return {"kills": sum(-signal.SIGALRM in ended for ended in ends)}


def worker(folder: Path) -> int:
    """Train digits by the command line, as a process of torchrun; process 1 is killed once, in step 4."""
    from unfog.cli import main

    os.environ["UNFOG_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    advance = Trainer.advance

    def deadly(trainer: Trainer) -> object:
        if (trainer.index, trainer.world.rank, os.environ["TORCHELASTIC_RESTART_COUNT"]) == (3, 1, "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(trainer)

    Trainer.advance = deadly  # type: ignore[assignment, method-assign]
    return main(["train", "digits", *DIGITS, "network.dropout=0.1", "--out", str(folder / "elastic"), "--no-report"])


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    told: dict[str, object] = {}
    for name in names:
        if name.startswith("killed-"):
            _, how, size, kills = name.split("-")
            told[name] = killed(folder, Parallel(how), int(size), int(kills))
        else:
            told[name] = in_processes(*SCENARIOS[name], folder)
    print(json.dumps(told))


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        sys.exit(worker(Path(sys.argv[2])))
    main(Path(sys.argv[1]), sys.argv[2:])
