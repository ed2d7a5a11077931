"""Finding out where a loss or gradient that is not finite came from.

A failed step is gone through once more, with hooks on every module of the task. What is random in a step is a pure
function of its position, so the second pass repeats the first, and steps that succeed pay nothing for it. In the
forward pass the first module whose output is not finite is noted; in the backward pass the first gradient that is
not: that at a module's output, that which it hands on to its inputs, or that of a weight.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unfog.data.batch import Batch
from unfog.tasks.task import Loss, Task
from unfog.training.failures import Cause, Example, Failure

_ROOT = "(the task)"
_EXACT = "look for a value that is too large for its dtype, or a division or root at zero"


class Piece(NamedTuple):
    """A micro-batch of a failed step.

    Attributes:
        batch: its examples.
        run: goes through it again, forward and backward.
        describe: asks the task about its examples, as ``Task.describe`` has it.
    """

    batch: Batch
    run: Callable[[], Loss]
    describe: Callable[[], Mapping[str, Tensor]]


class Failed(NamedTuple):
    """What the failed step showed: which one, whose, and its loss and gradient norm."""

    step: int
    player: str
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class _Finding:
    """What was found, and in which tensor."""

    cause: Cause
    module: str | None
    detail: str
    tensor: Tensor | None = None


def diagnose(failed: Failed, task: Task, player: nn.Module, pieces: Iterable[Piece], *, compiled: bool) -> Failure:
    """Go through a failed step again and say where it went bad first.

    Weights and optimisers are not touched; gradients of the player are left cleared. Buffers that a forward pass
    changes are the caller's to restore.

    Args:
        failed: what the step showed.
        task: whose loss it was.
        player: the module that was to move.
        pieces: the micro-batches of the step, in their order.
        compiled: whether modules were compiled; the second pass goes without, because hooks are not compiled in.
    """
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    player.zero_grad(set_to_none=True)
    try:
        with stance:
            finding, examples = _second_pass(task, pieces)
        finding = finding or _sums(task, player)
    except RuntimeError as error:  # torch's, such as too little memory for another pass: training may still go on
        first = str(error).partition("\n")[0]
        finding, examples = _Finding(Cause.UNKNOWN, None, f"it could not be gone through again: {first}"), []
    finally:
        player.zero_grad(set_to_none=True)
    return Failure(*failed, finding.cause, finding.module, finding.detail, tuple(examples))


def _second_pass(task: Task, pieces: Iterable[Piece]) -> tuple[_Finding | None, list[Example]]:
    found: _Finding | None = None
    examples: list[Example] = []
    for piece in pieces:
        with _watching(task) as watch:
            loss = piece.run()
        finding = _found(watch, piece.batch, loss)
        if finding is not None:
            found = found or finding
            with torch.no_grad():
                examples += _blamed(piece, finding.tensor)
    return found, examples


def _found(watch: "_Watch", batch: Batch, loss: Loss) -> _Finding | None:
    bad = [name for name, value in batch.values.items() if not _finite(value)]
    if bad:
        where = "" if watch.forward is None else f", and with it the output of {watch.forward.module}"
        module = None if watch.forward is None else watch.forward.module
        return _Finding(Cause.DATA, module, f"the data hold values in {bad[0]!r} that are not finite{where}")
    if watch.forward is not None:
        return watch.forward
    if not _finite(loss.total):
        detail = f"every module answered with finite numbers, the last one {watch.last}, and the loss is not; {_EXACT}"
        return _Finding(Cause.LOSS, None, detail)
    return watch.backward


def _blamed(piece: Piece, tensor: Tensor | None) -> list[Example]:
    """Return the examples whose input is not finite; else whose row of the first bad tensor; else whose own loss.

    In this order, because operations over the batch spread what is bad in one example to all that come after.
    """
    batch = piece.batch
    told = {name: value.detach() for name, value in piece.describe().items()}
    bad = torch.zeros(len(batch.ids), dtype=torch.bool)
    for values in ([*batch.values.values()], [tensor], [told.get("loss")]):
        for value in values:
            # The number of examples as the first axis tells that it has a row for each.
            if value is not None and value.ndim and len(value) == len(bad) and value.is_floating_point():
                bad |= ~value.detach().reshape(len(bad), -1).isfinite().all(1).cpu()
        if bad.any():
            break
    return [
        Example(int(batch.ids[k]), int(batch.epochs[k]), {name: float(value[k]) for name, value in told.items()})
        for k in bad.nonzero()[:, 0].tolist()
    ]


def _sums(task: Task, player: nn.Module) -> _Finding:
    """Say what is left when no single pass showed anything: sums over micro-batches and over weights."""
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    gradients = {names[id(p)]: p.grad for p in player.parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not _finite(gradient)]
    if bad:
        module = bad[0].rpartition(".")[0] or _ROOT
        detail = f"the gradient of {bad[0]} is finite in each micro-batch and overflows in their sum; {_EXACT}"
        return _Finding(Cause.NORM, module, detail)
    if gradients and not _finite(torch.nn.utils.get_total_norm(gradients.values())):
        largest = max(gradients, key=lambda name: float(gradients[name].abs().max()))
        size = float(gradients[largest].abs().max())
        detail = f"every gradient is finite, but not their norm; the largest is {size:.3g}, in {largest}"
        return _Finding(Cause.NORM, largest.rpartition(".")[0] or _ROOT, detail)
    return _Finding(
        Cause.VANISHED,
        None,
        "gone through again, every number was finite; look for faulty memory, or operations that do not repeat "
        "themselves",
    )


class _Watch:
    """The first bad value of a forward and of a backward pass.

    Attributes:
        forward: the first output of a module that was not finite.
        backward: the first gradient that was not.
        last: the module that answered last.
    """

    def __init__(self, task: Task) -> None:
        self.forward: _Finding | None = None
        self.backward: _Finding | None = None
        self.last = "(none)"
        self._names = {module: name or _ROOT for name, module in task.named_modules()}
        self._entered_bad: set[nn.Module] = set()

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note what a module is given, and set hooks on what it will hand back."""
        if not all(_finite(value) for value in _tensors((args, kwargs))):
            self._entered_bad.add(module)
        name = self._names[module]
        return tuple(self._handed(value, name) for value in args), {k: self._handed(v, name) for k, v in kwargs.items()}

    def _handed(self, value: Any, name: str) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        # A view of its own: its gradient is what this module alone hands back, not what others do with the value.
        seen = value.view_as(value)
        detail = f"the gradient that {name} hands back to its inputs is not finite, while what reached its output is"
        self._note_gradient(seen, name, detail)
        return seen

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note what a module answers."""
        name = self._names[module]
        self.last = name if next(module.children(), None) is None else self.last
        for value in _tensors(output):
            if self.forward is None and not _finite(value):
                self.forward = self._output(module, name, value)
            if value.requires_grad:
                detail = f"the gradient is not finite when it reaches the output of {name}: it went bad in the loss"
                self._note_gradient(value, name, f"{detail}, or between modules")

    def _output(self, module: nn.Module, name: str, value: Tensor) -> _Finding:
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        bad = [key for key, weight in own if not _finite(weight)]
        if bad:
            return _Finding(Cause.WEIGHTS, name, f"{bad[0]!r} of {name} holds values that are not finite", value)
        given = (
            "what it was given is not finite already, and was made between modules"
            if module in self._entered_bad
            else "what it was given is, and so are its weights"
        )
        return _Finding(Cause.FORWARD, name, f"the output of {name} is not finite; {given}; {_EXACT}", value)

    def weight(self, name: str, gradient: Tensor) -> None:
        """Note the gradient of a weight."""
        if self.backward is None and not _finite(gradient):
            module = name.rpartition(".")[0] or _ROOT
            self.backward = _Finding(Cause.BACKWARD, module, f"the gradient of {name} is not finite; {_EXACT}")

    def _note_gradient(self, value: Tensor, name: str, detail: str) -> None:
        def note(gradient: Tensor) -> None:
            if self.backward is None and not _finite(gradient):
                self.backward = _Finding(Cause.BACKWARD, name, f"{detail}; {_EXACT}", gradient)

        _on_gradient(value, note)


@contextmanager
def _watching(task: Task) -> Iterator[_Watch]:
    watch = _Watch(task)
    with ExitStack() as hooks:
        for module in task.modules():
            hooks.callback(module.register_forward_pre_hook(watch.before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(watch.after, with_kwargs=True).remove)
        for name, parameter in task.named_parameters():
            if parameter.requires_grad:
                hooks.callback(_on_gradient(parameter, partial(watch.weight, name)).remove)
        yield watch


def _on_gradient(value: Tensor, call: Callable[[Tensor], None]) -> RemovableHandle:
    return cast(RemovableHandle, cast(Any, value).register_hook(call))  # comes without types


def _tensors(value: Any) -> Iterator[Tensor]:
    """Go through the tensors that stand anywhere in arguments or answers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.detach().isfinite().all())
