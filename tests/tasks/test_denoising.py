import math

import pytest
import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.coupling import Coupling, Independent, MinibatchOT
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.nn.uncertainty import WithUncertainty
from unfog.diffusion.parameterization import X0, Eps, Flow, Parameterization, Score, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, RectifiedFlow, Schedule, VariancePreserving
from unfog.diffusion.times import Curriculum, Importance, LogitNormal, Stratified, Times, Uniform
from unfog.diffusion.weighting import P2, Constant, MinSNR, Uncertainty, Weight
from unfog.sampling.conditioning.conditioner import Conditioner, Label, Unconditional
from unfog.tasks.denoising import Denoising
from unfog.tasks.hybrid import LearnedVariance
from unfog.training.config import TrainConfig
from unfog.training.optim import OptimizerConfig
from unfog.training.trainer import Trainer


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(5, 5), nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.dropout(self.layer(x)) + t.view(-1, 1)  # type: ignore[no-any-return]


def drawn() -> tuple[Denoising, Batch, Rng]:
    torch.manual_seed(0)
    task = Denoising(NetworkDenoiser(Network(), Gaussian(Cosine()), V()), Unconditional(), Uniform(), Constant(V()))
    rng = Rng.of(3, [4, 9, 1, 7])
    x0 = rng.normal((5,), Purpose.SCRATCH)
    return task, Batch({"x0": x0}, rng.sample, rng.step.expand(4), rng.position), rng


def test_the_losses_that_are_told_of_examples_are_what_the_loss_is_the_mean_of() -> None:
    task, batch, rng = drawn()
    torch.manual_seed(1)
    total = task.loss(batch, "model", rng=rng).total
    torch.manual_seed(1)  # the same dropout
    assert torch.equal(task.describe(batch, "model", rng=rng)["loss"].mean(), total)


def test_the_noise_levels_that_are_told_are_those_that_are_drawn() -> None:
    task, batch, rng = drawn()
    told = task.describe(batch, "model", rng=rng)
    assert torch.equal(told["t"], Uniform().draw(rng, Cosine()))
    assert torch.equal(told["log_snr"], Cosine().log_snr(told["t"]))


# --- at the optimum


class Perfect(nn.Module):
    """The exact prediction for N(0, 1) in any parameterization of a variance-preserving schedule."""

    def __init__(self, parameterization: Parameterization, schedule: Schedule) -> None:
        super().__init__()
        self.parameterization, self.schedule = parameterization, schedule
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (scale[:, None] for scale in self.schedule.scales(t / 1000))
        k_x, k_e = self.parameterization.target_coefficients(alpha, sigma)
        x_t = x / self.parameterization.c_in(alpha, sigma)
        return self.scale * (k_x * alpha + k_e * sigma) * x_t


def perfect(
    parameterization: Parameterization, weight: Weight, times: Times | None = None, **options: object
) -> Denoising:
    schedule = VariancePreserving()
    network: nn.Module = Perfect(parameterization, schedule)
    if isinstance(weight, Uncertainty):
        torch.manual_seed(0)
        network = WithUncertainty(network, 8).double()
    denoiser = NetworkDenoiser(network, Gaussian(schedule), parameterization)
    return Denoising(denoiser, Unconditional(), times or Uniform(), weight, **options)  # type: ignore[arg-type]


def normal_batch(count: int, start: int = 0) -> tuple[Batch, Rng]:
    rng = Rng.of(11, torch.arange(start, start + count))
    return Batch(
        {"x0": rng.normal((8,), Purpose.SCRATCH).double()}, rng.sample, rng.step.expand(count), rng.position
    ), rng


def irreducible(parameterization: Parameterization, weight: Weight, schedule: Schedule) -> float:
    """The loss of the exact prediction of N(0, 1), over uniform times."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    alpha, sigma = schedule.scales(t)
    # Given x_t, (x0, eps) is uncertain by a unit normal number times (-sigma, alpha), by which a prediction moves by D.
    error = parameterization.determinant(alpha, sigma).square()
    return (weight.on(parameterization, alpha, sigma) * error).mean().item()


@pytest.mark.parametrize("parameterization", [Eps(), V(), Flow(), X0()], ids=repr)
@pytest.mark.parametrize("weight", [Constant(), Constant(Eps()), P2(), MinSNR()], ids=repr)
def test_the_loss_at_the_optimum_is_irreducible(parameterization: Parameterization, weight: Weight) -> None:
    task = perfect(parameterization, weight, Stratified(Uniform()))
    data, rng = normal_batch(4000)
    expected = irreducible(parameterization, weight, VariancePreserving())
    # 32,000 squares of normal numbers: sqrt(2 / 32000) = 0.8 per cent, a little more where weights differ.
    assert task.loss(data, "model", rng=rng).total.item() == pytest.approx(expected, rel=0.03)


def test_denoising_score_matching_is_a_parameterization_and_a_weight() -> None:
    """Error of the score weighted by sigma^2 is the error of eps: it can be trained, and its gradient is finite."""
    score, eps = perfect(Score(), Constant(Eps())), perfect(Eps(), Constant(Eps()))
    data, rng = normal_batch(64)
    losses = [task.loss(data, "model", rng=rng).total for task in (score, eps)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
    losses[0].backward()
    gradient = score.denoiser.network.scale.grad
    assert isinstance(gradient, Tensor)
    assert gradient.isfinite()


def test_an_uncertainty_adds_itself_and_divides_the_error() -> None:
    task = perfect(V(), Uncertainty(P2()))
    data, rng = normal_batch(32)
    plain = perfect(V(), P2()).loss(data, "model", rng=rng)
    assert task.loss(data, "model", rng=rng).total.item() == pytest.approx(plain.total.item(), rel=1e-12)  # u is 0
    network = task.denoiser.network
    assert isinstance(network, WithUncertainty)
    nn.init.constant_(network.out.bias, 0.7)
    found = task.loss(data, "model", rng=rng)
    assert found.total.item() == pytest.approx(math.exp(-0.7) * plain.total.item() + 0.7, rel=1e-6)
    assert found.parts["weighted_error"].item() == pytest.approx(plain.total.item(), rel=1e-12)


def test_an_uncertainty_needs_a_network_that_learns_it() -> None:
    denoiser = NetworkDenoiser(Network(), Gaussian(Cosine()), V())
    with pytest.raises(ValueError, match=r"expected a network in nn.uncertainty.WithUncertainty .* got Network"):
        Denoising(denoiser, Unconditional(), Uniform(), Uncertainty())


# --- importance sampling


def test_importance_sampling_leaves_the_objective_as_it_is() -> None:
    """After the warm-up draws move and weigh less, and the expectation stays."""
    task = perfect(V(), Constant(Eps()), Importance(Stratified(Uniform()), levels=10, history=2))
    assert task.history is not None
    for step in range(3):
        data, rng = normal_batch(64, 64 * step)
        task.loss(data, "model", rng=rng)
        task.settle(lambda own: own, applied=True)
    shares = task.history.shares()
    assert shares.max() > 2 * shares.min()
    data, rng = normal_batch(4000, 1000)
    expected = irreducible(V(), Constant(Eps()), VariancePreserving())
    assert task.loss(data, "model", rng=rng).total.item() == pytest.approx(expected, rel=0.03)


class Batches:
    """Normal numbers by position."""

    def take(self, start: int, count: int) -> Batch:
        return normal_batch(count, start)[0]


def training(micro_batch: int | None = None, batch_size: int = 12) -> Trainer:
    torch.manual_seed(0)
    network = WithUncertainty(Perfect(V(), VariancePreserving()), 8).double()
    denoiser = NetworkDenoiser(network, Gaussian(VariancePreserving()), V())
    times = Importance(Curriculum(LogitNormal(), Stratified(Uniform()), 100), levels=3, history=2)
    task = Denoising(denoiser, Unconditional(), times, Uncertainty(P2(), 8))
    optimizer = OptimizerConfig(lr=1e-2)
    config = TrainConfig(20, batch_size, micro_batch, seed=5, ema=(0.05,), optimizer=optimizer)
    return Trainer(task, Batches(), config)


def test_what_is_learned_beside_the_network_is_resumed_exactly() -> None:
    whole, first, second = training(), training(), training()
    losses = [whole.advance().loss for _ in range(20)]
    for _ in range(10):
        first.advance()
    second.load_state(first.state())
    assert [second.advance().loss for _ in range(10)] == losses[10:]
    for group, tensors in whole.state().tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.state().tensors[group][name]), f"{group}/{name}"
    # It would be equal too if nothing had been learned.
    state = whole.state().tensors
    assert {"history.losses", "history.counts"} == set(state["task"])
    assert int(state["task"]["history.counts"].sum()) == 240
    assert state["model"]["out.weight"].abs().max() > 0.01
    assert (state["ema-0.050"]["out.weight"] != state["model"]["out.weight"]).any()


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_cutting_a_step_does_not_change_the_draws(micro_batch: int) -> None:
    whole, cut = training(), training(micro_batch)
    expected, found = ([trainer.advance().loss for _ in range(6)] for trainer in (whole, cut))
    assert found == pytest.approx(expected, rel=1e-9)
    # The order of a step's losses is that of its examples, however it is cut.
    for name, buffer in whole.task.named_buffers():
        torch.testing.assert_close(dict(cut.task.named_buffers())[name], buffer, rtol=1e-6, atol=0)


# --- coupling


class Seeing(nn.Module):
    """Keeps what it is given, and answers with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.seen.append(x)
        return self.weight * x


def coupled(coupling: Coupling, conditioner: Conditioner | None = None) -> tuple[Denoising, Seeing]:
    network = Seeing()
    denoiser = NetworkDenoiser(network, Gaussian(RectifiedFlow()), Flow())
    return Denoising(denoiser, conditioner or Unconditional(), Uniform(), Constant(), coupling=coupling), network


def test_pairs_are_those_of_the_input_and_of_the_target() -> None:
    data, rng = normal_batch(16)
    task, network = coupled(MinibatchOT())
    loss = task.loss(data, "model", rng=rng).total
    x0 = data.values["x0"]
    noise = task.denoiser.process.noise_like(x0, rng=rng)
    paired = noise[MinibatchOT().pair(x0, noise, torch.zeros(16, dtype=torch.int64))]
    assert not torch.equal(paired, noise)
    t = Uniform().draw(rng, RectifiedFlow())[:, None]
    torch.testing.assert_close(network.seen[0], (1 - t) * x0 + t * paired)
    # A network that answers 0 errs by the target, which is noise minus data.
    torch.testing.assert_close(loss, (paired - x0).square().mean())


def test_noise_stays_within_the_condition_that_the_network_is_told() -> None:
    data, rng = normal_batch(16)
    labelled = Batch({**data.values, "label": torch.arange(16) % 4}, data.ids, data.epochs, data.positions)
    conditioner = Label(4, dropout=0.5)
    task, network = coupled(MinibatchOT(), conditioner)
    task.loss(labelled, "model", rng=rng)
    told = conditioner.drop(conditioner(labelled.values), rng)["label"]
    assert (told == 4).any()
    x0 = data.values["x0"]
    noise = task.denoiser.process.noise_like(x0, rng=rng)
    t = Uniform().draw(rng, RectifiedFlow())[:, None]
    found = (network.seen[0] - (1 - t) * x0) / t
    came_from = torch.cdist(found, noise).argmin(1)
    assert sorted(came_from.tolist()) == list(range(16))
    assert torch.equal(told[came_from], told)
    assert (came_from != torch.arange(16)).any()


def test_held_out_errors_are_those_of_independent_noise() -> None:
    data, rng = normal_batch(16)
    t = Uniform().draw(rng, RectifiedFlow())
    one, two = (
        coupled(coupling)[0].errors(data.values["x0"], t, {}, rng=rng) for coupling in (MinibatchOT(), Independent())
    )
    assert torch.equal(one.prediction, two.prediction)


def test_a_variance_is_not_learned_of_coupled_pairs() -> None:
    denoiser = NetworkDenoiser(Network(), Gaussian(RectifiedFlow()), Flow(), learned_variance=True)
    variance = LearnedVariance()
    with pytest.raises(ValueError, match="expected independent pairs of data and noise to learn a variance from"):
        Denoising(denoiser, Unconditional(), Uniform(), Constant(), coupling=MinibatchOT(), variance=variance)
