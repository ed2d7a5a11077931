"""Checks that what trains here trains correctly, on a recipe's own network, loss and data.

Each compares a number with a bound that follows from what is promised, and says what to do where it is missed.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unfog.checkpoint import read_checkpoint
from unfog.data.batch import Batch
from unfog.data.dataset import Dataset
from unfog.data.loader import ShuffledBatches
from unfog.diffusion.random import Purpose, Rng, seed_of
from unfog.pipeline import Pipeline
from unfog.recipe.build import build_pipeline, build_task, build_training
from unfog.recipe.card import DataCard
from unfog.recipe.run import Run, default_device, initial_network
from unfog.recipe.schema import Recipe, SaveConfig
from unfog.recipe.train import train
from unfog.sampling.request import SampleRequest
from unfog.tasks.denoising import Denoising
from unfog.training.optim import Constant
from unfog.training.run import run_training
from unfog.training.signals import Stop
from unfog.training.step import TrainStep
from unfog.training.trainer import NonFiniteError, Trainer

EXAMPLES = 8
"""Examples of the one batch."""

STEPS, FACTOR = 300, 10.0
"""Within so many steps the loss on one batch must fall by this factor: there is nothing to generalise to."""

NEAR_ZERO = 0.05
"""How far the first loss may be from that of answering 0, relatively: networks end in a layer of zeros."""

FLOAT32 = 1e-4
"""Relative error of float32: sums of some thousand terms keep five digits or more; 1e-4 allows for a hundredfold
worse conditioning, and is missed by kernels that round their factors to 10 bits (TF32: about 1e-3) or are wrong."""

TF32 = 1e-2
"""The same where the accelerator may round the factors of convolutions to TF32, which is torch's default."""

BFLOAT16 = 0.1
"""Relative error of bfloat16: 8 bits round by 0.4 %, and the errors of some dozen layers add up to a few percent."""

SAMPLES = 1e-3
"""Largest difference of a sample alone and in a batch: noise is equal to the bit, but kernels may sum in another
order for another batch, which a few evaluations amplify to about 1e-5."""


class Outcome(Enum):
    """What became of a check."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        name: of the check.
        outcome: what became of it.
        measured: the numbers.
        advice: what to do about a failure, or why it was skipped; empty otherwise.
    """

    name: str
    outcome: Outcome
    measured: str
    advice: str = ""

    @staticmethod
    def of(name: str, passed: bool, measured: str, advice: str) -> "Finding":
        """Return a finding that passed, or one that failed with advice."""
        return Finding(name, Outcome.PASS, measured) if passed else Finding(name, Outcome.FAIL, measured, advice)


class Subject(NamedTuple):
    """What is checked: a recipe that is fitted to its data, and the training data."""

    recipe: Recipe
    dataset: Dataset


class OneBatch:
    """The same examples at every position."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def take(self, start: int, count: int) -> Batch:
        """Return the batch."""
        return self.batch


def check_loss(subject: Subject, seconds: float) -> tuple[list[Finding], nn.Module]:
    """Check the loss on one batch, at the start and after some steps.

    Args:
        subject: what is checked.
        seconds: most time for it.

    Returns:
        The findings, and the network as it was trained.
    """
    recipe = subject.recipe
    batch = _batch(subject, EXAMPLES)
    count = len(batch.ids)
    optimizer = replace(recipe.train.optimizer, warmup_examples=0, decay=Constant())
    config = replace(
        recipe.train,
        steps=STEPS,
        batch_size=count,
        micro_batch=None,
        compile=False,
        ema=(),
        snapshot_every=None,
        optimizer=optimizer,
    )
    task = build_task(recipe, initial_network(recipe)).to(default_device())
    zero = _loss_of_zero(task, batch, config.seed)
    trainer, began = Trainer(task, OneBatch(batch), config), time.perf_counter()
    losses: list[float] = []
    try:
        while trainer.index < STEPS and (not losses or losses[-1] * FACTOR > losses[0]):
            losses.append(_told(trainer.advance()))
            if time.perf_counter() - began > seconds:
                break
    except NonFiniteError as error:
        losses.append(float("nan"))
        broken = Finding("one-batch overfit", Outcome.FAIL, str(error), "lower train.optimizer.lr")
        return [judge_start(losses[0], zero), broken], task.denoiser.network
    finished = trainer.index >= STEPS
    return [judge_start(losses[0], zero), judge_overfit(losses, finished=finished)], task.denoiser.network


def _told(step: TrainStep) -> float:
    """Return the weighted squared error of a step, without what is learned beside it."""
    return step.parts.get("weighted_error", step.loss)


def judge_start(first: float, zero: float) -> Finding:
    """Judge the first loss against that of a network that answers 0."""
    return Finding.of(
        "loss at the start",
        abs(first / zero - 1.0) <= NEAR_ZERO,
        f"{first:.4f}, that of answering 0 is {zero:.4f}",
        "the network does not begin at 0: look at its last layer, and at whether its input is scaled as the "
        "parameterization says",
    )


def judge_overfit(losses: list[float], *, finished: bool) -> Finding:
    """Judge the losses of steps on one batch.

    Args:
        losses: one a step.
        finished: whether all steps were taken that it may need; otherwise time ran out.
    """
    factor = losses[0] / losses[-1]
    measured = f"the loss fell from {losses[0]:.4f} to {losses[-1]:.4f}, {factor:.1f} times, in {len(losses)} steps"
    advice = (
        f"{FACTOR:g} times in {STEPS} steps is the least: the gradient, the optimiser or its rate is wrong; "
        "try another train.optimizer.lr, and this check without --recipe"
    )
    if factor >= FACTOR:
        return Finding("one-batch overfit", Outcome.PASS, measured)
    # A network too large for this machine may run out of time, but never rises.
    if not finished and factor > 1.0:
        return Finding("one-batch overfit", Outcome.SKIP, measured, "too slow here to tell")
    return Finding("one-batch overfit", Outcome.FAIL, measured, advice)


def check_saving(subject: Subject, folder: Path) -> list[Finding]:
    """Train a few steps, save, load and sample; and the same with an interruption.

    Args:
        subject: what is checked.
        folder: an empty one on the disk where runs will lie.
    """
    recipe = replace(
        subject.recipe,
        train=replace(
            subject.recipe.train, steps=4, batch_size=2, micro_batch=None, compile=False, snapshot_every=None
        ),
        save=SaveConfig(checkpoint_every=2, log_every=1),
    )
    info = subject.dataset.info
    whole = Run.create(folder / "whole", recipe, info)
    trainer = Trainer(
        build_training(recipe, initial_network(recipe)).to(default_device()),
        _batches(subject, recipe),
        whole.recipe.train,
    )
    for _ in run_training(trainer, whole.folder, checkpoint_every=2):
        pass
    own, average = trainer.task.players()["model"].state_dict(), recipe.average
    network = initial_network(recipe)
    network.load_state_dict(own if average is None else trainer.averages["model"].weights(average))
    card = DataCard.of(info)
    drawn = _draw(build_pipeline(recipe, network.to(default_device()), card))
    loaded = _draw(Run.open(whole.folder).pipeline())
    saved = Finding.of(
        "save, load, sample",
        torch.equal(drawn, loaded),
        f"{int((drawn != loaded).sum())} of {drawn.numel()} numbers differ",
        "what is loaded is not what was saved: check the disk and the memory of this machine",
    )
    return [saved, _check_resuming(subject, recipe, folder, whole)]


def _check_resuming(subject: Subject, recipe: Recipe, folder: Path, whole: Run) -> Finding:
    run, stop = Run.create(folder / "resumed", recipe, subject.dataset.info), Stop()
    for step in train(run, subject.dataset, stop=stop):
        if step.index == 2:
            stop.request()
    for _ in train(run, subject.dataset):
        pass
    one, two = (read_checkpoint(path.folder).tensors for path in (whole, run))
    total = sum(len(tensors) for tensors in one.values())
    wrong = total - sum(
        torch.equal(tensor, two[group][name]) for group, tensors in one.items() for name, tensor in tensors.items()
    )
    exact = default_device().type == "cpu"
    return Finding.of(
        "stop, resume",
        wrong == 0,
        f"{wrong} of {total} tensors differ from those of a run that was not stopped",
        "a resumed run must repeat the other to the bit on a processor"
        if exact
        else "kernels that add in changing order may be at work: try CUBLAS_WORKSPACE_CONFIG=:4096:8",
    )


def check_precision(subject: Subject, network: nn.Module, *, compiled: bool) -> list[Finding]:
    """Compare forward pass and gradients in float32 with those in other precisions, layouts and compiled.

    Args:
        subject: what is checked.
        network: trained for some steps, so that it does not answer 0.
        compiled: whether to compile it too.
    """
    network = copy.deepcopy(network).float().eval()
    inputs = _inputs(subject, network)
    plain = _work(network, inputs, torch.float32)
    exact = _work(copy.deepcopy(network).double(), inputs, torch.float64)
    layout = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tf32 = default_device().type == "cuda" and torch.backends.cudnn.allow_tf32
    fine = TF32 if tf32 else FLOAT32
    findings = [
        judge_precision("float32 against float64", plain, exact, fine),
        judge_precision("bfloat16 against float32", _work(network, inputs, torch.bfloat16), plain, BFLOAT16),
        judge_precision("channels-last against contiguous", _work(layout, inputs, torch.float32), plain, fine),
    ]
    if not compiled:
        return [*findings, Finding("compiled against plain", Outcome.SKIP, "not asked for", "give --compile")]
    whole: nn.Module = copy.deepcopy(network)
    whole.compile()
    return [*findings, judge_precision("compiled against plain", _work(whole, inputs, torch.float32), plain, fine)]


class Work(NamedTuple):
    """What a network answered and its gradient, as one vector each in float64."""

    answer: Tensor
    gradient: Tensor


def judge_precision(name: str, one: Work, other: Work, bound: float) -> Finding:
    """Judge how far two of them are apart, relative to the second."""
    errors = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(one, other, strict=True)]
    return Finding.of(
        name,
        all(error <= bound for error in errors),
        f"relative error {errors[0]:.1e} forward, {errors[1]:.1e} in the gradient; at most {bound:.0e}",
        "kernels here are less precise than they say: update torch, or train in float32 and without channels_last",
    )


def check_seeds(subject: Subject, network: nn.Module) -> list[Finding]:
    """Check that a sample is the same alone and in a batch.

    Args:
        subject: what is checked.
        network: trained for some steps.
    """
    card = DataCard.of(subject.dataset.info)
    pipeline = build_pipeline(subject.recipe, network, card)
    process, device = pipeline.denoiser.process, default_device()

    def noise(*samples: int) -> Tensor:
        return process.prior(card.shape, rng=Rng.of(0, torch.tensor(samples), device=device), device=device)

    same = torch.equal(noise(0, 1, 2)[1:2], noise(1))
    apart = float((_draw(pipeline, batch_size=3) - _draw(pipeline, batch_size=1)).abs().max())
    equal = "equal" if same else "not equal"
    finding = Finding.of(
        "seeds",
        same and apart <= SAMPLES,
        f"noise alone and in a batch {equal} to the bit; samples differ by at most {apart:.1e} (bound {SAMPLES:.0e})",
        "a sample depends on its neighbours: look for layers that mix the batch (batch norm), or update torch",
    )
    return [finding]


def guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what a check finds; that it raises is a finding too."""
    try:
        return check()
    except Exception as error:
        return [Finding(name, Outcome.FAIL, f"{type(error).__name__}: {error}", "this should have worked")]


def _batches(subject: Subject, recipe: Recipe) -> ShuffledBatches:
    return ShuffledBatches(subject.dataset, seed_of("data", recipe.train.seed), flip=recipe.data.flip)


def _batch(subject: Subject, count: int) -> Batch:
    return _batches(subject, subject.recipe).take(0, min(count, len(subject.dataset)))


def _loss_of_zero(task: Denoising, batch: Batch, seed: int) -> float:
    device = default_device()
    moved = Batch(
        {name: value.to(device) for name, value in batch.values.items()}, *(field.to(device) for field in batch[1:])
    )
    rng = Rng.of(seed, moved.ids, step=moved.epochs, position=moved.positions, device=device)
    with torch.no_grad():
        t = task.times.draw(rng, task.denoiser.process.schedule)
        errors = task.errors(moved.values["x0"], t, task.conditioner(moved.values), rng=rng)
    return float((errors.weight * errors.zero).mean())


class _Inputs(NamedTuple):
    x: Tensor
    level: Tensor
    cond: Mapping[str, Tensor]
    weight: Tensor


def _inputs(subject: Subject, network: nn.Module) -> _Inputs:
    """Return what a network takes, and random weights of its answers, whose gradient is then looked at."""
    device = default_device()
    batch = _batch(subject, 4)
    x0 = batch.values["x0"].to(device)
    task = build_task(subject.recipe, network)
    rng = Rng.of(0, len(x0), device=device)
    t = torch.linspace(0.2, 0.8, len(x0), device=device)
    process = task.denoiser.process
    noise = process.noise_like(x0, rng=rng)
    cond = task.conditioner({name: value.to(device) for name, value in batch.values.items()})
    x = process.add_noise(x0, noise, t)
    with torch.no_grad():
        shape = network(x, t, **cond).shape[1:]
    return _Inputs(x, process.schedule.network_time(t), cond, rng.normal(shape, Purpose.SCRATCH))


def _work(network: nn.Module, inputs: _Inputs, dtype: torch.dtype) -> Work:
    half = dtype is torch.bfloat16
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    with torch.autocast(default_device().type, dtype=torch.bfloat16, enabled=half):
        answer = network(inputs.x.to(wide), inputs.level.to(wide), **inputs.cond)
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients: tuple[Any, ...] = torch.autograd.grad(
        (answer.to(wide) * inputs.weight.to(wide)).sum(), parameters, allow_unused=True
    )
    flat = [g.detach().double().reshape(-1) for g in gradients if g is not None]
    return Work(answer.detach().double().reshape(-1), torch.cat(flat))


def _draw(pipeline: Pipeline, batch_size: int = 3) -> Tensor:
    settings = replace(pipeline.settings, steps=4)
    return pipeline.sample(SampleRequest(3, seed=0, settings=settings, batch_size=batch_size)).x.cpu()
