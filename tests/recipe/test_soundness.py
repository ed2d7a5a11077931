"""Each check finds nothing on what is sound, and the fault that is planted for it."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.checkpoint import RunState, read_checkpoint
from unfog.diffusion.random import Rng
from unfog.recipe import run as run_module
from unfog.recipe import soundness
from unfog.recipe.run import Run, initial_network
from unfog.recipe.schema import Recipe
from unfog.recipe.soundness import (
    Finding,
    Outcome,
    Subject,
    check_loss,
    check_precision,
    check_saving,
    check_seeds,
    guarded,
    judge_overfit,
    judge_start,
)
from unfog.training.trainer import Trainer


@pytest.fixture(scope="module")
def subject(tiny: Recipe, trained: Run) -> Subject:
    sound = replace(trained.recipe, network=replace(trained.recipe.network, dropout=0.0))
    return Subject(sound, trained.data().train)


@pytest.fixture(scope="module")
def network(subject: Subject) -> nn.Module:
    """A network that does not answer 0."""
    made = initial_network(subject.recipe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def outcomes(findings: list[Finding]) -> dict[str, Outcome]:
    for finding in findings:
        # A failure comes with advice, and one that passed has none to give.
        assert bool(finding.advice) == (finding.outcome is not Outcome.PASS)
    return {finding.name: finding.outcome for finding in findings}


def test_a_sound_network_learns_one_batch(subject: Subject) -> None:
    findings, learned = check_loss(subject, 60.0)
    assert outcomes(findings) == {"loss at the start": Outcome.PASS, "one-batch overfit": Outcome.PASS}
    assert any(bool(parameter.any()) for parameter in learned.conv_out.parameters())  # type: ignore[union-attr]


def test_a_network_that_does_not_begin_at_zero_is_found(
    subject: Subject, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "initial_network", lambda recipe: copy.deepcopy(network))
    findings, _ = check_loss(subject, 0.0)
    assert outcomes(findings)["loss at the start"] is Outcome.FAIL


def test_an_optimiser_that_does_nothing_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    monkeypatch.setattr(soundness, "STEPS", 5)
    findings, _ = check_loss(subject, 60.0)
    assert outcomes(findings)["one-batch overfit"] is Outcome.FAIL


def test_a_gradient_that_is_not_finite_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(float("nan")))
    findings, _ = check_loss(subject, 60.0)
    assert outcomes(findings)["one-batch overfit"] is Outcome.FAIL


def test_time_that_runs_out_excuses_a_loss_that_falls_and_no_other() -> None:
    assert judge_overfit([1.0, 0.5], finished=False).outcome is Outcome.SKIP
    assert judge_overfit([1.0, 0.5], finished=True).outcome is Outcome.FAIL
    assert judge_overfit([1.0, 1.1], finished=False).outcome is Outcome.FAIL
    assert judge_overfit([1.0, float("nan")], finished=False).outcome is Outcome.FAIL
    assert judge_overfit([1.0, 0.1], finished=False).outcome is Outcome.PASS


def test_the_first_loss_is_judged_on_both_sides() -> None:
    verdicts = [judge_start(first, 1.0).outcome for first in (0.9, 0.99, 1.01, 1.1, float("nan"))]
    assert verdicts == [Outcome.FAIL, Outcome.PASS, Outcome.PASS, Outcome.FAIL, Outcome.FAIL]


def test_what_is_saved_is_loaded_and_resumed(subject: Subject, tmp_path: Path) -> None:
    findings = check_saving(subject, tmp_path)
    assert outcomes(findings) == {"save, load, sample": Outcome.PASS, "stop, resume": Outcome.PASS}


def test_a_broken_save_is_found(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, groups: list[str]) -> RunState:
        state = read_checkpoint(folder, groups)
        changed = {
            group: {name: tensor + 0.01 for name, tensor in tensors.items()} for group, tensors in state.tensors.items()
        }
        return replace(state, tensors=changed)

    monkeypatch.setattr(run_module, "read_checkpoint", broken)
    assert outcomes(check_saving(subject, tmp_path))["save, load, sample"] is Outcome.FAIL


def test_a_resume_that_forgets_the_optimiser_is_found(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Trainer.load_state

    def forgetful(self: Trainer, state: RunState) -> None:
        forgotten: dict[str, Mapping[str, Tensor]] = {
            group: {name: torch.zeros_like(t) if "optimizer" in group else t for name, t in tensors.items()}
            for group, tensors in state.tensors.items()
        }
        load(self, replace(state, tensors=forgotten))

    monkeypatch.setattr(Trainer, "load_state", forgetful)
    findings = outcomes(check_saving(subject, tmp_path))
    assert findings == {"save, load, sample": Outcome.PASS, "stop, resume": Outcome.FAIL}


PRECISIONS = ("float32 against float64", "bfloat16 against float32", "channels-last against contiguous")


def test_precisions_and_layouts_agree(subject: Subject, network: nn.Module) -> None:
    findings = outcomes(check_precision(subject, network, compiled=False))
    assert findings == {**dict.fromkeys(PRECISIONS, Outcome.PASS), "compiled against plain": Outcome.SKIP}


class Faulty(nn.Module):
    """A network whose answer is a third too large under some circumstance."""

    def __init__(self, network: nn.Module, fault: str) -> None:
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, x: Tensor, level: Tensor, **cond: Tensor) -> Tensor:
        weight = self.network.conv_out.weight  # type: ignore[union-attr]
        assert isinstance(weight, Tensor)
        half = torch.is_autocast_enabled("cpu")
        wrong = {
            PRECISIONS[0]: weight.dtype is torch.float32 and not half,
            PRECISIONS[1]: half,
            PRECISIONS[2]: not weight.is_contiguous(),
        }[self.fault]
        out: Tensor = self.network(x, level, **cond)
        return out * (1.3 if wrong else 1.0)


@pytest.mark.parametrize("fault", PRECISIONS)
def test_a_wrong_kernel_is_found(subject: Subject, network: nn.Module, fault: str) -> None:
    findings = outcomes(check_precision(subject, Faulty(network, fault), compiled=False))
    assert findings[fault] is Outcome.FAIL


def test_a_compiler_that_changes_the_answer_is_found(
    subject: Subject, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(self: nn.Module) -> None:
        self.register_forward_hook(lambda module, inputs, out: out + 0.01)

    monkeypatch.setattr(nn.Module, "compile", compiled)
    findings = outcomes(check_precision(subject, network, compiled=True))
    assert findings["compiled against plain"] is Outcome.FAIL


def test_samples_do_not_depend_on_the_batch(subject: Subject, network: nn.Module) -> None:
    assert outcomes(check_seeds(subject, network)) == {"seeds": Outcome.PASS}


def test_noise_that_depends_on_the_batch_is_found(
    subject: Subject, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    normal = Rng.normal

    def mixed(self: Rng, *arguments: Any, **options: Any) -> Tensor:
        return normal(self, *arguments, **options).flip(0)

    monkeypatch.setattr(Rng, "normal", mixed)
    assert outcomes(check_seeds(subject, network)) == {"seeds": Outcome.FAIL}


class Mixing(nn.Module):
    """A network whose answer for one example depends on the others."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, level: Tensor, **cond: Tensor) -> Tensor:
        out: Tensor = self.network(x, level, **cond)
        return out - x.mean(0)


def test_a_network_that_mixes_the_batch_is_found(subject: Subject, network: nn.Module) -> None:
    assert outcomes(check_seeds(subject, Mixing(network))) == {"seeds": Outcome.FAIL}


def test_a_check_that_raises_has_failed() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no such kernel")

    (finding,) = guarded("kernels", broken)
    assert (finding.name, finding.outcome) == ("kernels", Outcome.FAIL)
    assert finding.measured == "RuntimeError: no such kernel"
