"""What a network costs: parameters and arithmetic, in total and layer by layer.

Arithmetic is that of matrix products, convolutions and attention, where a multiplication and an addition are
two operations ("multiply-adds x 2"). Papers on networks often print multiply-adds and call them FLOPs; halve the
numbers given here to compare. Norms, activations and resizing are not counted.

Nothing is computed: the network runs on torch's meta device, on shapes alone, and is left untouched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Layer", "flops", "layers", "parameters"]


@dataclass(frozen=True)
class Layer:
    """One row of the table that `layers` gives.

    Attributes:
        name: path of the module in its network, "" for the network itself.
        kind: name of the module's class.
        shape: shape of its output in the last of its calls; () for what was not called itself.
        parameters: number of parameters.
        flops: multiply-adds x 2.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


def parameters(network: nn.Module) -> int:
    """Count the parameters of a network, trained and frozen, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, *inputs: Tensor, cond: Mapping[str, Tensor] | None = None) -> int:
    """Count the multiply-adds x 2 of one forward pass.

    Args:
        network: any module whose forward only looks at the shapes of tensors.
        *inputs: its positional arguments; their values do not matter, their batch size does.
        cond: its keyword arguments, such as {"label": ...}.

    Returns:
        Operations for the whole batch.
    """
    return sum(_measure(network, inputs, cond or {})[0].values())


def layers(
    network: nn.Module,
    *inputs: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    depth: int | None = None,
) -> list[Layer]:
    """List the modules of a network that hold parameters or do arithmetic, in the order of definition.

    Each parameter and each operation is told once, at the innermost module it belongs to, so both columns sum
    to the totals of the network (unless modules share parameters).

    Args:
        network: as for `flops`.
        *inputs: as for `flops`.
        cond: as for `flops`.
        depth: fold all that lies deeper than this many names into its ancestor of that depth, >= 1; None folds
            nothing.

    Returns:
        One row a module.

    Raises:
        ValueError: if `depth` is below 1.
    """
    if depth is not None and depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1, or None for every module.")
    work, shapes = _measure(network, inputs, cond or {})
    modules = dict(network.named_modules())
    counts: dict[str, int] = {}
    operations: dict[str, int] = {}
    for name, module in modules.items():
        row = name if depth is None else ".".join(name.split(".")[:depth])
        counts[row] = counts.get(row, 0) + sum(p.numel() for p in module.parameters(recurse=False))
        operations[row] = operations.get(row, 0) + work.get(name, 0)
    return [
        Layer(name, type(modules[name]).__name__, shapes.get(name, ()), counts[name], operations[name])
        for name in counts
        if counts[name] or operations[name]
    ]


def _measure(
    network: nn.Module, inputs: Sequence[Tensor], cond: Mapping[str, Tensor]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Run on shapes alone: operations done by each module outside its children, and shapes of outputs."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    stand_ins = {name: tensor.to("meta") for name, tensor in state.items()}
    arguments = tuple(tensor.to("meta") for tensor in inputs)
    keywords = {name: tensor.to("meta") for name, tensor in cond.items()}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        last = output[-1] if isinstance(output, list | tuple) and output else output
        if isinstance(last, Tensor):
            shapes[name] = tuple(last.shape)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in network.named_modules()
    ]
    try:
        # Fused attention kernels have no formula on every device; as plain matrix products they are counted.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            functional_call(network, stand_ins, arguments, keywords)
    finally:
        for hook in hooks:
            hook.remove()
    return _own(_by_name(counter, type(network).__name__)), shapes


def _by_name(counter: FlopCounterMode, root: str) -> dict[str, int]:
    """Operations of each called module with all that it calls, under the names of `named_modules`."""
    totals = {}
    for name, operations in counter.get_flop_counts().items():
        if name == root or name.startswith(root + "."):
            totals[name.removeprefix(root).removeprefix(".")] = sum(operations.values())
    return totals


def _own(totals: Mapping[str, int]) -> dict[str, int]:
    """Take from each module what the modules inside it do."""
    own = dict(totals)
    for name in totals:
        ancestor = name
        while ancestor:
            ancestor = ancestor.rpartition(".")[0]
            if ancestor in totals:
                own[ancestor] -= totals[name]
                break
    return own
