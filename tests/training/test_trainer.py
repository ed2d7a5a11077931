import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from unfog.checkpoint import RunState, read_checkpoint, write_checkpoint
from unfog.data.batch import Batch
from unfog.diffusion.random import Rng
from unfog.tasks.task import Gather, Loss, Task
from unfog.training.config import Precision
from unfog.training.optim import OptimizerConfig, learning_rate
from unfog.training.trainer import NonFiniteError, Trainer


class Linear(Task):
    """A linear network; ``change`` may spoil the loss of a piece, counted over steps of three as tiny_config has."""

    def __init__(self, change: Callable[[Tensor, int], Tensor] | None = None) -> None:
        super().__init__()
        self.network = nn.Linear(8, 1)
        self.change = change
        self.pieces: list[Batch] = []
        self.keys: list[Rng] = []

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        self.pieces.append(batch)
        self.keys.append(rng)
        loss = self.network(batch.values["x0"]).float().square().mean()
        step, rest = divmod(int(batch.positions[0]), 8)
        loss = loss if self.change is None else self.change(loss, 3 * step + rest // 3)
        return Loss(loss, {"again": loss.detach()})


class Duel(Task):
    """A model that is trained through a critic, whose own loss asks for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.critic = nn.Linear(8, 8), nn.Linear(8, 1)
        self.strays: list[Tensor | None] = []

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.model, "critic": self.critic}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        if player == "model":
            self.strays.append(self.critic.weight.grad)
        told = self.critic(self.model(batch.values["x0"])).mean()
        return Loss(told if player == "model" else 0.0 * told, {})


def weights(trainer: Trainer) -> Mapping[str, Tensor]:
    return trainer.state().tensors["model"]


def test_ten_steps_and_ten_resumed_in_new_objects_equal_twenty(tiny: ModuleType, tmp_path: Path) -> None:
    whole, first, second = (tiny.tiny_trainer() for _ in range(3))
    expected = [whole.advance() for _ in range(20)]
    for _ in range(10):
        first.advance()
    write_checkpoint(tmp_path, first.state())
    torch.manual_seed(99)
    second.load_state(read_checkpoint(tmp_path))
    found = list(second)
    assert tiny.differences(whole.state().tensors, second.state().tensors) == []
    assert whole.state().numbers == second.state().numbers
    told = ("index", "examples", "players", "lr")
    assert [[getattr(s, k) for k in told] for s in found] == [[getattr(s, k) for k in told] for s in expected[10:]]


def test_a_state_from_before_updates_were_counted_continues(tiny: ModuleType) -> None:
    config = tiny.tiny_config(ema=(0.05, 0.10))
    first, second = tiny.tiny_trainer(config), tiny.tiny_trainer(config)
    first.advance()
    state = first.state()
    numbers = {name: value for name, value in state.numbers.items() if name != "ema_updates"}
    second.load_state(RunState(state.step, state.tensors, numbers))
    first.advance()
    second.advance()
    assert tiny.differences(first.state().tensors, second.state().tensors) == []


def test_training_moves_the_weights_and_the_averages_apart(tiny: ModuleType) -> None:
    # Guards the test above: equal because nothing happens would be no resume.
    trainer = tiny.tiny_trainer()
    before = trainer.state()
    for _ in range(5):
        trainer.advance()
    after = trainer.state().tensors
    changed = tiny.differences(before.tensors, after)
    assert {"model/0.weight", "ema-0.050/0.weight", "state/optimizer/0.weight/exp_avg", "task/seen"} <= set(changed)
    assert not torch.equal(after["model"]["0.weight"], after["ema-0.050"]["0.weight"])


@pytest.mark.parametrize("micro", [1, 3, 7])
def test_cutting_the_batch_does_not_change_the_result(tiny: ModuleType, micro: int) -> None:
    def train(micro_batch: int | None) -> tuple[list[float], Mapping[str, Tensor]]:
        torch.manual_seed(0)
        task = tiny.TinyTask(dropout=0.0, norm=False).double()
        config = tiny.tiny_config(micro_batch=micro_batch)
        trainer = Trainer(task, tiny.TinyBatches(torch.float64), config)
        steps = [trainer.advance() for _ in range(3)]
        return [v for s in steps for v in (s.loss, s.parts["first"], s.grad_norm)], weights(trainer)

    numbers, found = train(micro)
    expected_numbers, expected = train(None)
    assert numbers == pytest.approx(expected_numbers, rel=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_batch_is_taken_in_order_with_a_ragged_last_piece(tiny: ModuleType) -> None:
    task = Linear()
    trainer = tiny.tiny_trainer(tiny.tiny_config(batch_size=16, micro_batch=6), task)
    trainer.advance()
    trainer.advance()
    assert [len(piece.ids) for piece in task.pieces] == [6, 6, 4, 6, 6, 4]
    assert torch.cat([piece.positions for piece in task.pieces]).tolist() == list(range(32))


def test_noise_is_keyed_by_example_epoch_and_position(tiny: ModuleType) -> None:
    task = Linear()
    trainer = tiny.tiny_trainer(tiny.tiny_config(seed=11), task)
    for _ in range(6):  # 48 of 40 examples, so into the second epoch
        trainer.advance()
    for piece, key in zip(task.pieces, task.keys, strict=True):
        assert int(key.seed) == 11
        assert (key.sample.tolist(), key.step.tolist()) == (piece.ids.tolist(), piece.epochs.tolist())
        assert key.position.tolist() == piece.positions.tolist()


def test_the_global_generator_neither_matters_nor_moves(tiny: ModuleType) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = tiny.tiny_trainer()
        before = torch.get_rng_state()
        trainer.advance()
        assert torch.equal(before, torch.get_rng_state())
        results.append(trainer.state().tensors)
    assert tiny.differences(*results) == []


def test_dropout_differs_between_pieces_and_steps_and_follows_the_seed(tiny: ModuleType) -> None:
    def masks(seed: int) -> list[list[float]]:
        found: list[list[float]] = []
        task = Linear()
        task.network = nn.Sequential(nn.Linear(8, 1), nn.Dropout(0.5))
        task.network.register_forward_hook(
            lambda module, args, out: found.append(nn.functional.dropout(torch.ones(64)).tolist())
        )
        trainer = tiny.tiny_trainer(tiny.tiny_config(seed=seed), task)
        trainer.advance()
        trainer.advance()
        return found

    one = masks(1)
    assert len({tuple(mask) for mask in one}) == len(one) == 6
    assert masks(1) == one
    assert masks(2) != one


def clipped(tiny: ModuleType, clip: float | None) -> tuple[float, Tensor]:
    """Return the norm that is told and the gradient that is applied."""
    task = Linear()
    with torch.no_grad():
        task.network.weight.copy_(torch.arange(8.0))
        task.network.bias.zero_()
    trainer = tiny.tiny_trainer(tiny.tiny_config(optimizer=OptimizerConfig(clip=clip)), task)
    step = trainer.advance()
    return step.grad_norm, torch.cat([p.grad.flatten() for p in task.network.parameters()])


def test_a_large_gradient_is_shortened_to_the_limit_and_keeps_its_direction(tiny: ModuleType) -> None:
    norm, free = clipped(tiny, None)
    told, short = clipped(tiny, 0.5)
    assert told == norm > 0.5
    torch.testing.assert_close(short, free * (0.5 / norm))  # float32
    assert float(short.norm()) == pytest.approx(0.5, rel=1e-6)


def test_a_small_gradient_is_left_as_it_is(tiny: ModuleType) -> None:
    norm, free = clipped(tiny, None)
    assert torch.equal(clipped(tiny, 2 * norm)[1], free)


def test_the_rate_is_that_of_the_middle_of_the_batch(tiny: ModuleType) -> None:
    config = tiny.tiny_config()
    trainer = tiny.tiny_trainer(config)
    rates = [trainer.advance().lr for _ in range(3)]
    assert rates == [learning_rate(config.optimizer, seen, 160) for seen in (4.0, 12.0, 20.0)]
    assert trainer._players["model"].optimizer.param_groups[0]["lr"] == rates[-1]


def spoiled(kind: str, pieces: set[int]) -> Callable[[Tensor, int], Tensor]:
    def change(loss: Tensor, piece: int) -> Tensor:
        if piece not in pieces:
            return loss
        return {
            "nan": loss * math.nan,
            "inf": loss * math.inf,
            "value": loss + math.inf,  # with a finite gradient
            "gradient": (loss * 0).sqrt(),  # 0, with the gradient 0 * inf
        }[kind]

    return change


@pytest.mark.parametrize("kind", ["nan", "inf", "value", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(tiny: ModuleType, kind: str) -> None:
    trainer = tiny.tiny_trainer(task=Linear(spoiled(kind, {4})))  # the second piece of the second step
    assert trainer.advance().applied
    before = trainer.state()
    step = trainer.advance()
    after = trainer.state()
    assert (step.applied, trainer.skipped, trainer.index, trainer.examples) == (False, 1, 2, 16)
    assert tiny.differences(before.tensors, after.tensors) == []
    assert after.numbers["ema_time"] == {"model": 8}
    assert after.numbers["ema_updates"] == {"model": 1}


def test_training_goes_on_after_a_skipped_step(tiny: ModuleType) -> None:
    trainer = tiny.tiny_trainer(task=Linear(spoiled("nan", {0})))
    before = weights(trainer)
    assert [trainer.advance().applied for _ in range(2)] == [False, True]
    assert not torch.equal(weights(trainer)["weight"], before["weight"])


def test_three_skipped_steps_in_a_row_stop_the_run(tiny: ModuleType) -> None:
    trainer = tiny.tiny_trainer(task=Linear(spoiled("nan", {6, 9, 12})))  # steps 3, 4 and 5
    steps = []
    told = "3 steps in a row, up to step 5.*loss nan, gradient norm nan of 'model' in step 5"
    with pytest.raises(NonFiniteError, match=told):
        steps.extend(trainer)
    assert trainer.index == 5


def test_two_skipped_steps_and_a_good_one_start_the_count_anew(tiny: ModuleType) -> None:
    trainer = tiny.tiny_trainer(tiny.tiny_config(steps=8), Linear(spoiled("nan", {0, 3, 9, 12})))
    assert [step.applied for step in trainer] == [False, False, True, False, False, True, True, True]


def test_skipped_steps_in_a_row_are_counted_over_a_resume(tiny: ModuleType) -> None:
    first = tiny.tiny_trainer(task=Linear(spoiled("nan", {0, 3})))
    first.advance()
    first.advance()
    second = tiny.tiny_trainer(task=Linear(spoiled("nan", {6})))
    second.load_state(first.state())
    with pytest.raises(NonFiniteError):
        second.advance()


def test_no_gradient_of_another_player_is_computed(tiny: ModuleType) -> None:
    task = Duel()
    Trainer(task, tiny.TinyBatches(), tiny.tiny_config()).advance()
    assert task.strays == [None, None, None]  # seen before each piece of the model's move


def test_a_player_is_not_moved_by_the_loss_of_another(tiny: ModuleType) -> None:
    trainer = Trainer(Duel(), tiny.TinyBatches(), tiny.tiny_config(optimizer=OptimizerConfig()))
    before = trainer.state().tensors
    step = trainer.advance()
    after = trainer.state().tensors
    assert not torch.equal(before["model"]["weight"], after["model"]["weight"])
    assert torch.equal(before["critic"]["weight"], after["critic"]["weight"])
    assert (list(step.players), step.players["critic"].grad_norm) == (["model", "critic"], 0.0)


def test_each_player_has_its_own_files(tiny: ModuleType) -> None:
    trainer = Trainer(Duel(), tiny.TinyBatches(), tiny.tiny_config(ema=(0.05,)))
    assert set(trainer.state().tensors) == {
        *("model", "ema-0.050", "state/optimizer"),
        *("critic", "critic-ema-0.050", "state/critic-optimizer"),
    }


def test_players_that_share_weights_are_refused(tiny: ModuleType) -> None:
    class Shared(Duel):
        def players(self) -> Mapping[str, nn.Module]:
            return {"model": self.model, "both": nn.Module.get_submodule(self, "")}

    with pytest.raises(ValueError, match="without common weights; 'model' and 'both' share some"):
        Trainer(Shared(), tiny.TinyBatches(), tiny.tiny_config())


def test_a_player_outside_of_the_task_is_refused(tiny: ModuleType) -> None:
    class Outside(Linear):
        def players(self) -> Mapping[str, nn.Module]:
            return {"model": nn.Linear(8, 1)}

    with pytest.raises(ValueError, match="player 'model' to be a module of the task"):
        Trainer(Outside(), tiny.TinyBatches(), tiny.tiny_config())


@pytest.mark.parametrize("name", ["task", "state", "ema-0.050", "a/b", ""])
def test_a_player_whose_name_would_clash_on_disk_is_refused(tiny: ModuleType, name: str) -> None:
    class Named(Linear):
        def players(self) -> Mapping[str, nn.Module]:
            return {name: self.network}

    with pytest.raises(ValueError, match=f"named like a variable.*got '{name}'"):
        Trainer(Named(), tiny.TinyBatches(), tiny.tiny_config())


def test_a_task_without_players_is_refused(tiny: ModuleType) -> None:
    class Nobody(Linear):
        def players(self) -> Mapping[str, nn.Module]:
            return {}

    with pytest.raises(ValueError, match="at least one player, got Nobody"):
        Trainer(Nobody(), tiny.TinyBatches(), tiny.tiny_config())


def test_the_task_itself_may_be_the_player(tiny: ModuleType) -> None:
    class Whole(Linear):
        def players(self) -> Mapping[str, nn.Module]:
            return {"model": self}

    trainer = Trainer(Whole(), tiny.TinyBatches(), tiny.tiny_config(ema=()))
    trainer.advance()
    assert set(trainer.state().tensors) == {"model", "state/optimizer"}


def test_networks_train_in_training_mode_after_an_evaluation(tiny: ModuleType) -> None:
    one, two = tiny.tiny_trainer(), tiny.tiny_trainer()
    one.task.eval()
    assert one.advance().loss == two.advance().loss


def test_a_frozen_part_outside_of_the_players_keeps_its_mode(tiny: ModuleType) -> None:
    task = Linear()
    task.teacher = nn.Dropout().eval()
    tiny.tiny_trainer(task=task).advance()
    assert not task.teacher.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_of_low_precision_is_refused(tiny: ModuleType, dtype: torch.dtype) -> None:
    trainer = tiny.tiny_trainer(task=Linear(lambda loss, piece: loss.to(dtype)))
    with pytest.raises(TypeError, match="a scalar of float32 or float64"):
        trainer.advance()


def test_a_loss_per_example_is_refused(tiny: ModuleType) -> None:
    trainer = tiny.tiny_trainer(task=Linear(lambda loss, piece: loss.expand(3)))
    with pytest.raises(TypeError, match=r"of shape \(3,\)"):
        trainer.advance()


def test_parts_that_differ_between_pieces_are_refused(tiny: ModuleType) -> None:
    class Fickle(Linear):
        def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
            total = super().loss(batch, player, rng=rng).total
            return Loss(total, {f"part {len(batch.ids)}": total.detach()})

    with pytest.raises(ValueError, match="the same parts of the loss for every micro-batch"):
        tiny.tiny_trainer(task=Fickle()).advance()


def test_a_short_batch_is_refused(tiny: ModuleType) -> None:
    class Short(tiny.TinyBatches):
        def take(self, start: int, count: int) -> Batch:
            return super().take(start, count - 1)

    with pytest.raises(ValueError, match=r"8 examples from batches.take\(0, 8\), got 7"):
        Trainer(Linear(), Short(), tiny.tiny_config()).advance()


def test_iterating_ends_at_the_last_step(tiny: ModuleType) -> None:
    trainer = tiny.tiny_trainer(tiny.tiny_config(steps=3))
    assert [(step.index, step.examples) for step in trainer] == [(1, 8), (2, 16), (3, 24)]
    assert list(trainer) == []


def test_bfloat16_is_for_the_networks_only(tiny: ModuleType) -> None:
    seen: list[torch.dtype] = []
    task = Linear()
    task.network.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    trainer = tiny.tiny_trainer(tiny.tiny_config(precision=Precision.BFLOAT16), task)
    trainer.advance()
    assert set(seen) == {torch.bfloat16}
    kept = [t.dtype for tensors in trainer.state().tensors.values() for t in tensors.values()]
    assert set(kept) == {torch.float32}


def test_channels_last_is_a_matter_of_layout_and_resumes_exactly(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.tiny_config(channels_last=True)
    whole, first, second = (tiny.tiny_trainer(config) for _ in range(3))
    for _ in range(4):
        whole.advance()
    first.advance()
    write_checkpoint(tmp_path, first.state())
    second.load_state(read_checkpoint(tmp_path))
    for _ in range(3):
        second.advance()
    assert tiny.differences(whole.state().tensors, second.state().tensors) == []
    filters = second.task.network[3].weight
    average = second.averages["model"].weights(0.05)["3.weight"]
    moment = second._players["model"].optimizer.state[filters]["exp_avg"]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (filters, average, moment))


def test_compiling_is_of_the_players_alone(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    task = Linear()
    task.network = Wrapped(task.network)
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    tiny.tiny_trainer(tiny.tiny_config(compile=True), task)
    assert compiled == [task.network]


def test_compiling_what_torch_would_not_compile_is_refused(tiny: ModuleType) -> None:
    with pytest.raises(ValueError, match="got Sequential for 'model', which torch leaves as it is"):
        tiny.tiny_trainer(tiny.tiny_config(compile=True))


def broken(state: RunState, change: Callable[[dict[str, dict[str, Tensor]]], None]) -> RunState:
    tensors = {group: dict(names) for group, names in state.tensors.items()}
    change(tensors)
    return RunState(state.step, tensors, state.numbers)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("ema-0.100"), r"differing: \['ema-0.100'\]"),
        (lambda t: t.update(other={}), r"differing: \['other'\]"),
        (lambda t: t["model"].pop("0.bias"), "saved model.*\n  missing: 0.bias"),
        (lambda t: t["ema-0.050"].update(more=torch.zeros(1)), "saved ema-0.050.*\n  unexpected: more"),
        (lambda t: t["model"].update({"0.bias": torch.zeros(3)}), r"expected float32 \(12,\), got float32 \(3,\)"),
        (lambda t: t["state/optimizer"].pop("0.bias/step"), "missing: 0.bias/step"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_untouched(
    tiny: ModuleType, change: Callable[[dict[str, dict[str, Tensor]]], None], told: str
) -> None:
    source, trainer = tiny.tiny_trainer(), tiny.tiny_trainer()
    source.advance()
    before = trainer.state().tensors
    with pytest.raises(ValueError, match=told):
        trainer.load_state(broken(source.state(), change))
    assert tiny.differences(before, trainer.state().tensors) == []


def test_another_seed_is_refused(tiny: ModuleType) -> None:
    state = tiny.tiny_trainer().state()
    with pytest.raises(ValueError, match="the seed 7 of the saved run, got 8"):
        tiny.tiny_trainer(tiny.tiny_config(seed=8)).load_state(state)


def test_a_state_is_a_copy(tiny: ModuleType) -> None:
    trainer = tiny.tiny_trainer()
    state = trainer.state()
    kept = {group: {n: t.clone() for n, t in tensors.items()} for group, tensors in state.tensors.items()}
    trainer.advance()
    assert tiny.differences(state.tensors, kept) == []


def test_waiting_is_part_of_the_time_of_a_step(tiny: ModuleType) -> None:
    step = tiny.tiny_trainer().advance()
    assert 0.0 < step.waited < step.seconds


class Settling(Linear):
    """Keeps what it is told at the end of each step."""

    def __init__(self, change: Callable[[Tensor, int], Tensor] | None = None) -> None:
        super().__init__(change)
        self.settled: list[tuple[bool, list[int]]] = []

    def settle(self, gather: Gather, *, applied: bool) -> None:
        own = torch.cat([piece.positions for piece in self.pieces])
        self.settled.append((applied, gather(own[-8:]).tolist()))
        self.pieces.clear()


def test_a_task_settles_each_step_with_the_numbers_of_its_examples_in_order(tiny: ModuleType) -> None:
    task = Settling()
    trainer = tiny.tiny_trainer(tiny.tiny_config(), task)
    trainer.advance()
    trainer.advance()
    assert task.settled == [(True, list(range(8))), (True, list(range(8, 16)))]


def test_a_task_is_told_of_a_step_that_was_not_applied(tiny: ModuleType) -> None:
    task = Settling(lambda loss, piece: loss * math.nan if piece == 4 else loss)
    trainer = tiny.tiny_trainer(tiny.tiny_config(), task)
    for _ in range(3):
        trainer.advance()
    assert [applied for applied, _ in task.settled] == [True, False, True]
