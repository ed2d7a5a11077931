import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.batch import Batch
from unfog.diffusion.nn.gan import Critic, Generator
from unfog.diffusion.nn.stages import StageConfig
from unfog.diffusion.random import Purpose, Rng
from unfog.tasks.adversarial import Adversarial, Game
from unfog.training.config import TrainConfig
from unfog.training.optim import OptimizerConfig
from unfog.training.trainer import Trainer

CONFIG = StageConfig(channels=1, size=(8, 8), width=4, latent_dim=3, num_classes=2)


class Pictures:
    """Forty pictures of two classes, in their order."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.x0 = (torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(dtype)

    def take(self, start: int, count: int) -> Batch:
        positions = torch.arange(start, start + count)
        ids = positions % 40
        return Batch({"x0": self.x0[ids], "label": ids % 2}, ids, positions // 40, positions)


def make(game: Game = Game.NON_SATURATING, gamma: float = 2.0, every: int = 4, spectral: bool = False) -> Adversarial:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        pair = Generator(CONFIG), Critic(CONFIG, spectral=spectral)
    return Adversarial(*pair, game=game, gamma=gamma, every=every)


def trainer(task: Adversarial, **changes: object) -> Trainer:
    config = TrainConfig(6, 8, seed=5, ema=(0.1,), optimizer=OptimizerConfig(lr=1e-3, betas=(0.0, 0.99), clip=None))
    return Trainer(task, Pictures(next(task.parameters()).dtype), replace(config, **changes))


def keys(batch: Batch) -> Rng:
    return Rng.of(5, batch.ids, step=batch.epochs, position=batch.positions)


def answers(task: Adversarial, batch: Batch, purpose: Purpose) -> Tensor:
    """Return the critic's answers to the samples of a batch."""
    with torch.no_grad():
        z = keys(batch).normal((3,), purpose)
        return task.critic(task.generator(z, batch.values["label"]), batch.values["label"])


def test_the_losses_are_those_of_the_non_saturating_game() -> None:
    task, batch = make(gamma=0.0), Pictures().take(0, 8)
    with torch.no_grad():
        real = task.critic(batch.values["x0"], batch.values["label"])
    critic = -torch.log(torch.sigmoid(real)) - torch.log(1 - torch.sigmoid(answers(task, batch, Purpose.NOISE)))
    generator = -torch.log(torch.sigmoid(answers(task, batch, Purpose.PRIOR)))
    for player, expected in (("critic", critic), ("model", generator)):
        assert float(task.loss(batch, player, rng=keys(batch)).total.detach()) == pytest.approx(
            float(expected.mean()), rel=1e-5
        )


def test_the_losses_are_those_of_the_hinge() -> None:
    task, batch = make(Game.HINGE, gamma=0.0), Pictures().take(0, 8)
    with torch.no_grad():
        real = task.critic(batch.values["x0"], batch.values["label"])
    critic = F.relu(1 - real) + F.relu(1 + answers(task, batch, Purpose.NOISE))
    generator = -answers(task, batch, Purpose.PRIOR)
    for player, expected in (("critic", critic), ("model", generator)):
        assert float(task.loss(batch, player, rng=keys(batch)).total.detach()) == pytest.approx(
            float(expected.mean()), rel=1e-5
        )


def test_the_penalty_is_the_square_of_the_slope_by_finite_differences() -> None:
    task = make(gamma=3.0).double()
    x0, label = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([1])
    small = 1e-6
    with torch.no_grad():
        moved = x0 + small * torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
        back = x0 - small * torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
        many = label.expand(64)
        slope = (task.critic.double()(moved, many) - task.critic(back, many)) / (2 * small)
    # Central differences of float64 with steps of 1e-6 are good to about 1e-9, the kinks of the rectifiers aside.
    assert float(task.penalty(x0, label).detach()) == pytest.approx(1.5 * float(slope.square().sum()), rel=1e-5)


def test_the_lazy_penalty_has_the_expectation_of_the_whole() -> None:
    task, batch = make(every=4), Pictures().take(0, 40)
    whole = task.penalty(batch.values["x0"], batch.values["label"]).detach()
    lazy = task.loss(batch, "critic", rng=keys(batch)).parts["penalty"]
    assert float(lazy) == pytest.approx(float(whole[::4].mean()), rel=1e-5)
    # Of all places where the count may begin, the mean is that of all examples.
    starts = [task.loss(batch, "critic", rng=replace(keys(batch), position=batch.positions + k)) for k in range(4)]
    mean = math.fsum(float(loss.parts["penalty"]) for loss in starts) / 4
    assert mean == pytest.approx(float(whole.mean()), rel=1e-5)


def test_the_penalty_reaches_the_critics_weights() -> None:
    task, batch = make(), Pictures().take(0, 4)
    penalty = task.penalty(batch.values["x0"], batch.values["label"]).sum()
    (slope,) = torch.autograd.grad(penalty, task.critic.analysis.stem.weight)
    assert slope.abs().max() > 0


def test_each_player_changes_its_own_weights_alone() -> None:
    task = make()
    made = trainer(task)
    moved: dict[str, list[bool]] = {}
    for name, player in made._players.items():
        before = {key: value.clone() for key, value in task.named_parameters()}
        made._turn(player, Pictures().take(0, 8), 1e-3)
        changed = {key for key, value in task.named_parameters() if not torch.equal(before[key], value)}
        own = {"model": "generator.", "critic": "critic."}[name]
        moved[name] = [key.startswith(own) for key in changed]
    assert all(moved["model"])
    assert all(moved["critic"])
    assert min(map(len, moved.values())) > 10


def test_both_players_have_optimiser_and_averages_of_their_own() -> None:
    tensors = trainer(make()).tensors()
    assert set(tensors) == {
        *("model", "ema-0.100", "state/optimizer"),
        *("critic", "critic-ema-0.100", "state/critic-optimizer"),
    }


@pytest.mark.parametrize("spectral", [False, True])
def test_three_steps_and_three_resumed_equal_six(spectral: bool) -> None:
    whole, first = trainer(make(spectral=spectral)), trainer(make(spectral=spectral))
    for _ in whole:
        pass
    for _ in range(3):
        first.advance()
    second = trainer(make(spectral=spectral))
    second.load_state(first.state())
    for _ in second:
        pass
    one, two = whole.state().tensors, second.state().tensors
    assert one.keys() == two.keys()
    assert [f"{g}/{n}" for g, ts in one.items() for n, t in ts.items() if not torch.equal(t, two[g][n])] == []


def test_cutting_the_batch_does_not_change_the_step() -> None:
    whole, cut = trainer(make().double()), trainer(make().double(), micro_batch=3)
    steps = [one.advance() for one in (whole, cut)]
    for name in ("model", "critic"):
        assert steps[0].players[name].loss == pytest.approx(steps[1].players[name].loss, rel=1e-10)
        assert steps[0].players[name].grad_norm == pytest.approx(steps[1].players[name].grad_norm, rel=1e-10)


def test_an_unknown_player_is_refused() -> None:
    batch = Pictures().take(0, 2)
    with pytest.raises(ValueError, match="'model' or 'critic'"):
        make().loss(batch, "judge", rng=keys(batch))


@pytest.mark.parametrize("change", [{"gamma": -1.0}, {"every": 0}])
def test_numbers_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make(**change)
