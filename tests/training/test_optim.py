import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from unfog.training.optim import (
    Constant,
    Cosine,
    Decay,
    InverseSqrt,
    LinearToZero,
    OptimizerConfig,
    build_optimizer,
    decayed_parameters,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)

DECAYS = [Constant(), Cosine(), Cosine(final=0.1), InverseSqrt(300), LinearToZero(), LinearToZero(begin=500)]


def config(decay: Decay, warmup: int = 100) -> OptimizerConfig:
    return OptimizerConfig(lr=2.0, warmup_examples=warmup, decay=decay)


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 3, 3),
            "linear": nn.Linear(3, 4),
            "norm": nn.GroupNorm(1, 4),
            "table": nn.Embedding(5, 6),
            "gain": nn.ParameterList([nn.Parameter(torch.ones(1, 4, 1, 1))]),
        }
    )


@pytest.mark.parametrize("decay", DECAYS)
def test_the_rate_rises_linearly_from_zero_to_its_peak(decay: Decay) -> None:
    rates = [learning_rate(config(decay), seen, 1000) for seen in (0, 25, 50, 100)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 2.0], rel=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
def test_the_rate_never_rises_after_the_warm_up(decay: Decay) -> None:
    rates = [learning_rate(config(decay), seen, 1000) for seen in range(100, 1001)]
    assert all(after <= before for before, after in pairwise(rates))


@pytest.mark.parametrize(
    ("decay", "seen", "factor"),
    [
        (Constant(), 1000, 1.0),
        (Cosine(), 550, 0.5),  # half way from 100 to 1000
        (Cosine(), 1000, 0.0),
        (Cosine(final=0.1), 550, 0.55),
        (Cosine(final=0.1), 1000, 0.1),
        (InverseSqrt(200), 200, 1.0),
        (InverseSqrt(200), 800, 0.5),
        (LinearToZero(), 550, 0.5),
        (LinearToZero(), 1000, 0.0),
        (LinearToZero(begin=500), 500, 1.0),
        (LinearToZero(begin=500), 750, 0.5),
        (LinearToZero(begin=10), 550, 0.5),  # not before the warm-up is over
    ],
)
def test_each_decay_has_its_published_values(decay: Decay, seen: int, factor: float) -> None:
    assert learning_rate(config(decay), seen, 1000) == pytest.approx(2.0 * factor, abs=1e-12)


def test_without_a_warm_up_the_run_begins_at_the_peak() -> None:
    assert learning_rate(config(Cosine(), warmup=0), 0, 1000) == 2.0


def test_a_run_that_ends_within_the_warm_up_has_a_rate() -> None:
    assert learning_rate(config(Cosine(), warmup=100), 40, 50) == pytest.approx(0.8)


def test_the_area_under_the_schedule_is_nearly_that_of_every_batch_size() -> None:
    def area(batch: int) -> float:
        seen = range(0, 960, batch)
        return sum(batch * learning_rate(config(Cosine()), n + batch / 2, 960) for n in seen)

    # The midpoint rule errs by (batch / 960)**2 pi**2 / 24 of the cosine's half area at most, and by the kink.
    assert area(32) == pytest.approx(area(1), rel=1e-2)


def test_weight_decay_is_for_matrices_and_filters_only() -> None:
    assert decayed_parameters(network()) == {"conv.weight", "linear.weight"}


def test_the_groups_hold_every_trainable_parameter_once() -> None:
    module = network()
    module["linear"].bias.requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.1), module)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_a_step_equals_that_of_plain_adamw() -> None:
    # The state is made before the first step, which must not change what AdamW does.
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 4), nn.Linear(3, 4)
    theirs.load_state_dict(ours.state_dict())
    settings = OptimizerConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.0)
    one = build_optimizer(settings, ours)
    two = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.0, fused=True)
    for _ in range(3):
        x = torch.randn(5, 3)
        for module, optimizer in ((ours, one), (theirs, two)):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_the_state_goes_into_another_optimiser_with_its_layout() -> None:
    torch.manual_seed(0)
    one, two = (nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last) for _ in range(2))
    first, second = build_optimizer(OptimizerConfig(), one), build_optimizer(OptimizerConfig(), two)
    one(torch.randn(1, 2, 4, 4)).square().sum().backward()
    first.step()
    saved = {name: t.clone(memory_format=torch.contiguous_format) for name, t in optimizer_tensors(first, one).items()}
    load_optimizer_tensors(second, two, saved)
    loaded = optimizer_tensors(second, two)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert loaded["weight/exp_avg"].stride() == two.weight.stride()


def test_a_saved_state_with_a_missing_tensor_is_refused() -> None:
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(OptimizerConfig(), module)
    saved = dict(optimizer_tensors(optimizer, module))
    del saved["bias/exp_avg_sq"]
    with pytest.raises(ValueError, match="missing: bias/exp_avg_sq"):
        load_optimizer_tensors(optimizer, module, saved)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"lr": math.inf},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"clip": 0.0},
        {"warmup_examples": -1},
    ],
)
def test_values_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}|betas"):
        replace(OptimizerConfig(), **change)


def test_a_module_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="got SiLU without any"):
        build_optimizer(OptimizerConfig(), nn.SiLU())
