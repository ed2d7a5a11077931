import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.denoiser import NetworkDenoiser, Prediction
from unfog.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine, RectifiedFlow, VarianceExploding, VariancePreserving, linear


class Recorder(nn.Module):
    """Answers with its input and keeps what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.seen: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.seen.append((x, c_noise, cond))
        return x * self.weight


def test_the_answer_is_the_solution_of_the_parameterization() -> None:
    schedule = VariancePreserving()
    x_t, t = (
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.tensor(0.4).double(),
    )
    for parameterization in (V(), Flow(), X0(), Eps()):
        denoiser = NetworkDenoiser(Recorder(torch.float64), Gaussian(schedule), parameterization)
        solution = parameterization.solve(schedule.alpha(t), schedule.sigma(t))
        # The network answers F = x_t.
        torch.testing.assert_close(denoiser(x_t, t).x0, (solution.x0_skip + solution.x0_out) * x_t)
        assert torch.equal(denoiser.predict(x_t, t), x_t)


def test_inputs_are_scaled_by_c_in() -> None:
    network, schedule = Recorder(torch.float64), VarianceExploding()
    t = torch.tensor([0.1, 1.0], dtype=torch.float64)
    NetworkDenoiser(network, Gaussian(schedule), EDM())(torch.ones(2, 3, dtype=torch.float64), t)
    expected = 1 / (schedule.sigma(t) ** 2 + 0.25).sqrt()
    torch.testing.assert_close(network.seen[0][0], expected[:, None].expand(2, 3))


@pytest.mark.parametrize("shape", [(), (2,)])
def test_the_network_gets_one_noise_level_an_example(shape: tuple[int, ...]) -> None:
    network = Recorder()
    NetworkDenoiser(network, Gaussian(linear()), V())(torch.zeros(2, 3), torch.full(shape, 0.5, dtype=torch.float64))
    assert network.seen[0][1].shape == (2,)
    assert network.seen[0][1].tolist() == [499.0, 499.0]


def test_the_noise_levels_of_frames_are_passed_on() -> None:
    network = Recorder()
    t = torch.tensor([[0.5, 1.0], [0.1, 0.2]], dtype=torch.float64)
    x0 = NetworkDenoiser(network, Gaussian(RectifiedFlow()), V())(torch.ones(2, 2, 3), t).x0
    assert network.seen[0][1].shape == (2, 2)
    assert x0.shape == (2, 2, 3)


def test_conditions_are_passed_by_name() -> None:
    network, label = Recorder(), torch.tensor([1, 2])
    NetworkDenoiser(network, Gaussian(Cosine()), V())(torch.zeros(2, 3), torch.tensor(0.5), {"label": label})
    assert network.seen[0][2] == {"label": label}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_network_computes_in_its_own_dtype_and_levels_stay_apart(dtype: torch.dtype) -> None:
    network = Recorder(dtype)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    x0 = NetworkDenoiser(network, Gaussian(linear()), V())(torch.zeros(1000, 1), t).x0
    seen, level, _ = network.seen[0]
    assert seen.dtype is dtype
    assert x0.dtype is torch.float32
    assert level.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    # In bfloat16 a thousand levels would collapse to about five hundred.
    assert len(level.unique()) == 1000
    assert torch.equal(level.round(), torch.arange(1000).to(level))


def test_scales_are_formed_in_the_dtype_of_the_time() -> None:
    # 1 - 1e-9 is 1 in float32, where eps would say nothing of x0.
    schedule, t = VariancePreserving(), torch.tensor(1e-9, dtype=torch.float64)
    x0 = NetworkDenoiser(Recorder(), Gaussian(schedule), Eps())(torch.ones(1, 1), t).x0
    expected = (1 - schedule.sigma(t)) / schedule.alpha(t)
    assert x0.item() == pytest.approx(expected.item(), rel=1e-7)


def test_a_parameterization_without_information_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha_1 = 0"):
        NetworkDenoiser(Recorder(), Gaussian(Cosine()), Eps())


def test_a_stateless_denoiser_serves_every_trajectory_itself() -> None:
    denoiser = NetworkDenoiser(Recorder(), Gaussian(Cosine()), V())
    assert denoiser.begin() is denoiser


class CountingSchedule(VariancePreserving):
    """Counts how often it is asked."""

    asked = 0

    def alpha(self, t: Tensor) -> Tensor:
        type(self).asked += 1
        return super().alpha(t)


TIMES = tuple(torch.tensor([1.0, 0.7, 0.2, 1e-9], dtype=torch.float64).unbind())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("parameterization", [Eps(), V(), X0(), Flow(), EDM()], ids=repr)
def test_a_prepared_denoiser_answers_as_before(parameterization: Parameterization, dtype: torch.dtype) -> None:
    x_t = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = Recorder(dtype)
    denoiser = NetworkDenoiser(network, Gaussian(VariancePreserving()), parameterization)
    prepared, label = denoiser.prepared(TIMES), {"label": torch.tensor([0, 1, 2])}
    for t in TIMES:
        expected, found = denoiser(x_t, t, label).x0, prepared(x_t, t, label).x0
        (x, level, cond), (same_x, same_level, same_cond) = network.seen[-2:]
        # Scalars of many times and of one may differ in the last bit of float64; the network's dtype hides that.
        torch.testing.assert_close(same_x, x)
        torch.testing.assert_close(same_level, level, rtol=1e-6 if level.dtype is torch.float32 else 1e-14, atol=0)
        assert cond == same_cond == label
        torch.testing.assert_close(found, expected, rtol=1e-2 * (dtype is not torch.float64), atol=1e-13)


def test_a_prepared_denoiser_forms_no_scalar_again() -> None:
    denoiser = NetworkDenoiser(Recorder(), Gaussian(CountingSchedule()), V()).prepared(TIMES)
    before = CountingSchedule.asked
    for t in TIMES:
        denoiser(torch.zeros(2, 3), t)
    assert CountingSchedule.asked == before


@pytest.mark.parametrize("t", [TIMES[1].clone(), torch.tensor(0.4), torch.tensor([0.1, 0.9]).double()])
def test_a_prepared_denoiser_answers_at_other_times_too(t: Tensor) -> None:
    denoiser, x_t = NetworkDenoiser(Recorder(), Gaussian(VariancePreserving()), V()), torch.ones(2, 3)
    assert torch.equal(denoiser.prepared(TIMES)(x_t, t).x0, denoiser(x_t, t).x0)


def test_a_network_that_changes_its_input_does_not_change_the_state() -> None:
    class InPlace(Recorder):
        def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
            return x.mul_(self.weight.detach() * 3)

    denoiser, x_t = NetworkDenoiser(InPlace(), Gaussian(VariancePreserving()), V()), torch.ones(2, 3)
    for each in (denoiser, denoiser.prepared(TIMES)):
        each(x_t, TIMES[1])
        assert torch.equal(x_t, torch.ones(2, 3))


def test_a_prediction_has_no_variance_unless_given() -> None:
    assert Prediction(torch.zeros(1)).variance_fraction is None


# --- learned variance


class Twice(Recorder):
    """Answers with twice the channels: its input, and a number that differs between them."""

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        answer = super().forward(x, c_noise, **cond)
        return torch.cat([answer, torch.full_like(answer, 0.5) + answer.detach().sign()], dim=1)


def learned(network: nn.Module) -> NetworkDenoiser:
    return NetworkDenoiser(network, Gaussian(VariancePreserving()), V(), learned_variance=True)


def test_a_learned_variance_comes_as_a_fraction_beside_the_estimate() -> None:
    x_t = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    denoiser = learned(Twice(torch.float64))
    fixed = NetworkDenoiser(Recorder(torch.float64), Gaussian(VariancePreserving()), V())
    found = denoiser(x_t, TIMES[1])
    assert torch.equal(found.x0, fixed(x_t, TIMES[1]).x0)
    assert found.variance_fraction is not None
    # The numbers 1.5, -0.5 and 0.5: halved and shifted, and confined to the bounds.
    assert found.variance_fraction.tolist() == [[1.0, 0.25, 0.75]]
    raw = denoiser.output(x_t, TIMES[1])
    assert raw.variance_fraction is not None
    assert raw.variance_fraction.tolist() == [[1.25, 0.25, 0.75]]
    assert torch.equal(raw.prediction, x_t)


def test_a_prepared_denoiser_knows_its_learned_variance() -> None:
    x_t, denoiser = torch.tensor([[1.0, -1.0, 0.0]]), learned(Twice())
    prepared = denoiser.prepared(TIMES)
    for t in TIMES:
        assert torch.equal(prepared(x_t, t).variance_fraction, denoiser(x_t, t).variance_fraction)
        torch.testing.assert_close(prepared(x_t, t).x0, denoiser(x_t, t).x0)


@pytest.mark.parametrize("prepare", [False, True])
def test_answers_of_another_shape_are_refused(prepare: bool) -> None:
    x_t = torch.zeros(2, 1, 4)
    for denoiser, expected in (
        (learned(Recorder()), r"\(2, 2, 4\) from a network that predicts and whose variance it learns"),
        # These would broadcast.
        (NetworkDenoiser(Twice(), Gaussian(VariancePreserving()), V()), r"\(2, 1, 4\) from a network that predicts"),
    ):
        asked = denoiser.prepared(TIMES) if prepare else denoiser
        with pytest.raises(ValueError, match=f"expected an answer of shape {expected}"):
            asked(x_t, TIMES[0])


def test_the_estimate_of_a_prediction_is_the_denoisers() -> None:
    denoiser, x_t = NetworkDenoiser(Recorder(), Gaussian(VariancePreserving()), EDM()), torch.ones(2, 3)
    assert torch.equal(denoiser.estimate(x_t, denoiser.predict(x_t, TIMES[1]), TIMES[1]), denoiser(x_t, TIMES[1]).x0)
