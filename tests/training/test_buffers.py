import torch
from torch import nn

from unfog.training.buffers import Buffers


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(2)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("absent", None)


def test_buffers_come_back_as_they_were_kept() -> None:
    module = Counter()
    buffers = Buffers(module)
    module.seen += 1
    buffers.keep()
    before = {name: value.clone() for name, value in module.named_buffers()}
    module.seen += 1
    module.inner(torch.full((4, 2), torch.inf))
    assert not module.inner.running_mean.isfinite().any()
    buffers.restore()
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())


def test_a_buffer_that_was_replaced_by_another_tensor_comes_back_too() -> None:
    module = Counter()
    buffers = Buffers(module)
    buffers.keep()
    module.seen = module.seen + 5
    buffers.restore()
    assert module.seen.tolist() == [0, 0, 0]


def test_weights_are_no_buffers() -> None:
    module = Counter()
    buffers = Buffers(module)
    with torch.no_grad():
        module.inner.weight.fill_(7)
    buffers.restore()
    assert module.inner.weight.tolist() == [7, 7]


def test_a_module_without_buffers_has_nothing_to_keep() -> None:
    buffers = Buffers(nn.Linear(2, 2))
    buffers.keep()
    buffers.restore()
