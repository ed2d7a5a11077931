"""Failed steps are traced to their cause; each test plants one."""

import math
from collections.abc import Callable, Mapping
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion import parameterization, schedule, times, weighting
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.tasks.denoising import Denoising
from unfog.tasks.task import Loss, Task
from unfog.training.config import Precision
from unfog.training.failures import Cause, Failure
from unfog.training.optim import OptimizerConfig
from unfog.training.trainer import Trainer


class Root(nn.Module):
    """The root of the magnitude: finite at zero, with an infinite slope there."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 0).abs().sqrt() if self.training else x


class Network(nn.Module):
    """Two layers around a place for a module that goes wrong."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), middle, nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)) + t.view(-1, 1))  # type: ignore[no-any-return]


def denoising(middle: nn.Module | None = None) -> Denoising:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = Network(middle or nn.SiLU())
    denoiser = NetworkDenoiser(network, Gaussian(schedule.Cosine()), parameterization.V())
    return Denoising(denoiser, Unconditional(), times.Uniform(), weighting.Constant(parameterization.V()))


def trainer_of(
    tiny: ModuleType, task: Task, spoil: Callable[[Tensor], None] | None = None, **changes: object
) -> Trainer:
    batches = tiny.TinyBatches()
    if spoil is not None:
        spoil(batches.data)
    return Trainer(task, batches, tiny.tiny_config(**{"ema": (0.05,), "batch_size": 16, "micro_batch": 6, **changes}))


def failure_of(trainer: Trainer) -> Failure:
    failures = trainer.advance().failures
    assert len(failures) == 1
    return failures[0]


def put(value: float, *places: tuple[int, int]) -> Callable[[Tensor], None]:
    def spoil(data: Tensor) -> None:
        for place in places:
            data[place] = value

    return spoil


def ids_at(trainer: Trainer, *positions: int) -> list[int]:
    return trainer.batches.take(0, 16).ids[list(positions)].tolist()


def test_an_infinite_value_of_one_example_is_traced_to_it(tiny: ModuleType) -> None:
    bad = ids_at(trainer_of(tiny, denoising()), 7)[0]  # the second example of the second piece
    trainer = trainer_of(tiny, denoising(), put(math.inf, (bad, 3)))
    found = failure_of(trainer)
    assert (found.cause, found.module) == (Cause.DATA, "denoiser.network.first")
    assert [example.id for example in found.examples] == [bad]
    assert "the data hold values in 'x0' that are not finite" in str(found)


def test_the_noise_levels_that_are_told_are_those_that_were_drawn(tiny: ModuleType) -> None:
    task = denoising()
    bad = ids_at(trainer_of(tiny, task), 2, 13)
    trainer = trainer_of(tiny, task, put(math.nan, (bad[0], 0), (bad[1], 1)))
    found = failure_of(trainer)
    batch = trainer.batches.take(0, 16)
    t = task.times.draw(Rng.of(7, batch.ids, step=batch.epochs, position=batch.positions), schedule.Cosine())
    assert [(e.id, e.told["t"]) for e in found.examples] == [(bad[0], float(t[2])), (bad[1], float(t[13]))]
    log_snr = schedule.Cosine().log_snr(t)
    assert [e.told["log_snr"] for e in found.examples] == [float(log_snr[2]), float(log_snr[13])]
    assert math.isnan(found.examples[0].told["loss"])


@pytest.mark.parametrize("middle", [None, nn.Sequential(nn.Identity(), nn.Linear(8, 8))])
def test_a_bad_weight_is_named(tiny: ModuleType, middle: nn.Module | None) -> None:
    task = denoising(middle)
    module = task.denoiser.network.last if middle is None else middle[1]
    with torch.no_grad():
        module.weight[3, 4] = math.nan
    found = failure_of(trainer_of(tiny, task))
    assert found.cause is Cause.WEIGHTS
    assert found.module == f"denoiser.network.{'last' if middle is None else 'middle.1'}"
    assert f"'weight' of {found.module} holds values that are not finite" in found.detail
    assert len(found.examples) == 16


def test_a_module_that_overflows_is_named_with_its_examples(tiny: ModuleType) -> None:
    class Tower(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.pow(60)  # (up to 5)**60 fits float32, 50**60 does not

    trainer = trainer_of(tiny, denoising(Tower()))
    bad = ids_at(trainer, 9)[0]
    found = failure_of(trainer_of(tiny, denoising(Tower()), put(1e3, (bad, 0))))
    assert (found.cause, found.module) == (Cause.FORWARD, "denoiser.network.middle")
    assert [example.id for example in found.examples] == [bad]
    assert "what it was given is, and so are its weights" in found.detail


def test_what_goes_bad_between_modules_is_told_from_what_goes_bad_in_them(tiny: ModuleType) -> None:
    class Between(Network):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.last(self.first(x) / (0 * t.view(-1, 1)))  # type: ignore[no-any-return]

    task = denoising()
    task.denoiser.network = Between(nn.Identity())
    found = failure_of(trainer_of(tiny, task))
    assert (found.cause, found.module) == (Cause.FORWARD, "denoiser.network.last")
    assert "was made between modules" in found.detail


def test_a_loss_that_overflows_is_traced_to_its_examples(tiny: ModuleType) -> None:
    trainer = trainer_of(tiny, denoising())
    bad = ids_at(trainer, 4)[0]
    found = failure_of(trainer_of(tiny, denoising(), put(1e25, (bad, 0))))  # finite, but not its square
    assert (found.cause, found.module) == (Cause.LOSS, None)
    assert [example.id for example in found.examples] == [bad]
    assert found.examples[0].told["loss"] == math.inf
    assert "the last one denoiser.network.last, and the loss is not" in found.detail


def test_a_gradient_that_goes_bad_in_a_module_is_traced_to_it(tiny: ModuleType) -> None:
    found = failure_of(trainer_of(tiny, denoising(Root())))
    assert math.isfinite(found.loss)
    assert (found.cause, found.module) == (Cause.BACKWARD, "denoiser.network.middle")
    assert "hands back to its inputs is not finite, while what reached its output is" in found.detail


class Spiked(Task):
    """A linear network with any loss."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.made = nn.Linear(8, 8), loss

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        return Loss(self.made(self.network(batch.values["x0"])), {})


def test_a_gradient_that_goes_bad_in_the_loss_is_told_from_that(tiny: ModuleType) -> None:
    found = failure_of(trainer_of(tiny, Spiked(lambda y: (y * 0).abs().sqrt().mean())))
    assert (found.cause, found.module) == (Cause.BACKWARD, "network")
    assert "is not finite when it reaches the output of network: it went bad in the loss" in found.detail


def test_the_gradient_of_a_weight_alone_can_be_the_first(tiny: ModuleType) -> None:
    # What reaches the output is 1e30, and so is one input; their product is the gradient of a weight.
    task = Spiked(lambda y: y.sum() * 1e30)
    bad = ids_at(trainer_of(tiny, task), 0)[0]
    with torch.no_grad():
        task.network.weight.zero_()
    found = failure_of(trainer_of(tiny, task, put(1e30, (bad, 0))))
    assert (found.cause, found.module) == (Cause.BACKWARD, "network")
    assert "the gradient of network.weight is not finite" in found.detail


def test_a_norm_that_overflows_names_the_largest_gradient(tiny: ModuleType) -> None:
    found = failure_of(trainer_of(tiny, Spiked(lambda y: y.sum() * 1e25)))  # 1e25 fits float32, its square does not
    assert (found.cause, found.module) == (Cause.NORM, "network")
    assert "every gradient is finite, but not their norm" in found.detail
    assert found.examples == ()


def test_a_failure_that_does_not_come_again_says_so(tiny: ModuleType) -> None:
    once = iter([math.nan])
    found = failure_of(trainer_of(tiny, Spiked(lambda y: y.mean() * next(once, 1.0))))
    assert (found.cause, found.module) == (Cause.VANISHED, None)
    assert "look for faulty memory" in found.detail


def test_a_second_pass_that_cannot_be_made_does_not_end_the_run(tiny: ModuleType) -> None:
    calls = iter([math.nan, math.nan, math.nan])

    def loss(y: Tensor) -> Tensor:
        factor = next(calls, None)
        if factor is None:
            raise RuntimeError("out of memory\nTried to allocate")
        return y.mean() * factor

    found = failure_of(trainer_of(tiny, Spiked(loss)))
    assert (found.cause, found.detail) == (Cause.UNKNOWN, "it could not be gone through again: out of memory")


def test_dropout_is_the_same_in_the_second_pass(tiny: ModuleType) -> None:
    class Trap(nn.Module):
        """Bad where dropout happened to leave a row untouched, which hardly comes twice."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.functional.dropout(torch.ones_like(x))
            self.seen.append(mask)
            return x + mask * math.inf

    trap = Trap()
    assert failure_of(trainer_of(tiny, denoising(trap))).module == "denoiser.network.middle"
    first, second = trap.seen[:3], trap.seen[3::2]  # each piece of the second pass is described as well
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, trap.seen[4::2], strict=True))


def test_a_module_in_bfloat16_is_watched_in_bfloat16(tiny: ModuleType) -> None:
    seen: list[torch.dtype] = []
    task = denoising(Root())
    task.denoiser.network.first.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    found = failure_of(trainer_of(tiny, task, precision=Precision.BFLOAT16))
    assert found.module == "denoiser.network.middle"
    assert set(seen) == {torch.bfloat16}


def test_compiled_modules_are_watched_too(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with = nn.Module.compile
    # Another backend spares the C++ compiler; whether hooks are seen does not depend on it.
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_with(module, backend="eager"))
    trainer = trainer_of(tiny, denoising(Root()), compile=True)
    assert failure_of(trainer).module == "denoiser.network.middle"


def test_healthy_steps_have_no_hooks_and_no_second_pass(tiny: ModuleType) -> None:
    calls = []
    task = denoising(Root())
    task.denoiser.network.register_forward_hook(lambda module, args, out: calls.append(len(module._forward_hooks)))
    trainer = trainer_of(tiny, task, optimizer=OptimizerConfig())
    assert not trainer.advance().applied
    assert calls == [1, 1, 1, 2, 1, 2, 1, 2, 1]  # three pieces, then each with hooks and once to be described
    del task.denoiser.network.middle
    task.denoiser.network.middle = nn.SiLU()
    calls.clear()
    assert trainer.advance().applied
    assert calls == [1, 1, 1]


def test_a_sentence_names_four_examples_and_the_record_all(tiny: ModuleType) -> None:
    task = denoising()
    with torch.no_grad():
        task.denoiser.network.last.bias.fill_(math.nan)
    found = failure_of(trainer_of(tiny, task))
    assert str(found).endswith(" and 12 more")
    record = found.record()
    assert isinstance(record["examples"], list)
    assert len(record["examples"]) == 16
    assert (record["loss"], record["cause"], record["module"]) == ("nan", "weights", "denoiser.network.last")


def test_the_gradients_of_the_second_pass_do_not_stay(tiny: ModuleType) -> None:
    trainer = trainer_of(tiny, denoising(Root()))
    trainer.advance()
    assert all(parameter.grad is None for parameter in trainer.task.parameters())
