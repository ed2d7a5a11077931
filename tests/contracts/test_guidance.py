"""Laws of every denoiser around a denoiser: a new kind of guidance is tested by existing, once it has lines below."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unfog.sampling.guidance
from unfog.diffusion import analytic
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, Schedule, VariancePreserving
from unfog.sampling.adaptive import RK45
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.guidance.auto import AutoGuided
from unfog.sampling.guidance.bounds import Bounded, Clip
from unfog.sampling.guidance.classifier import ClassifierGuided, NetworkClassifier, NoisyClassifier
from unfog.sampling.guidance.classifier_free import ClassifierFree
from unfog.sampling.guidance.compose import Mixture, Product
from unfog.sampling.guidance.interval import Interval
from unfog.sampling.guidance.loss import LossGuided
from unfog.sampling.guidance.several import Several, Weighted
from unfog.sampling.picard import Picard
from unfog.sampling.sampler import Sampler, sample

MEANS = torch.tensor([[-1.0, 0.2], [0.8, 0.5]], dtype=torch.float64)
VARIANCES = torch.tensor([[0.3, 0.1], [0.2, 0.4]], dtype=torch.float64)
X_T = Rng.of(3, 4).normal((2,), Purpose.SCRATCH).double()
LABEL = {"label": torch.tensor([0, 1, 1, 0])}
NULL = {"label": torch.tensor([2, 2, 2, 2])}
LEFT = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
ALOFT = torch.tensor([[0.1, 0.9], [0.0, 1.0], [0.6, 0.2], [0.5, 0.5]], dtype=torch.float64)
SOUGHT = {"sought": torch.tensor([[0.5, 0.5], [-1.0, 0.0], [0.0, 0.3], [0.2, -0.2]], dtype=torch.float64)}


class Inner(Denoiser):
    """The exact denoiser of a mixture, moved by something that is each example's own; notes what it is asked."""

    def __init__(self, schedule: Schedule, offset: Tensor, notes: list[str] | None = None) -> None:
        super().__init__()
        self.inner = analytic.mixture(Gaussian(schedule), MEANS, VARIANCES)
        self.process, self.offset = self.inner.process, offset
        self.notes: list[str] = [] if notes is None else notes

    def begin(self) -> Denoiser:
        self.notes.append("begun")
        return self

    def select(self, index: Tensor) -> Denoiser:
        return Inner(self.process.schedule, self.offset[index], self.notes)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.notes.append(f"{len(x_t)}")
        offset = self.offset.repeat(len(x_t) // len(self.offset)).to(x_t)[:, None]
        return Prediction(self.inner(x_t, t, cond).x0.to(x_t) + offset)

    def log_density(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.inner.log_density(x_t, t, cond)


class Exact(NoisyClassifier):
    """The posterior of the component."""

    def __init__(self, process: Gaussian) -> None:
        super().__init__()
        self.mixture = analytic.mixture(process, MEANS, VARIANCES)
        self.process, self.classes = process, 2

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.mixture.log_posterior(x_t, t)


def fresh(cond: Cond) -> Cond:
    """Copies, which are inference tensors in inference mode: nothing else that a pipeline makes there."""
    return {name: value.clone() for name, value in cond.items()}


def missed(x0: Tensor, t: Tensor, sought: Tensor) -> Tensor:
    return (x0 - sought).square().sum(1)


Make = Callable[[Denoiser, Denoiser, NoisyClassifier], Denoiser]

NEUTRAL: dict[str, tuple[type, Make]] = {
    "free": (ClassifierFree, lambda d, w, c: ClassifierFree(d, 1.0, fresh(NULL))),
    "free, rescaled": (ClassifierFree, lambda d, w, c: ClassifierFree(d, 1.0, fresh(NULL), rescale=0.7)),
    "several": (
        Several,
        lambda d, w, c: Several(d, [Weighted(fresh(LABEL), 1.0), Weighted(fresh(NULL), 0.0)], fresh(NULL)),
    ),
    "outside": (Interval, lambda d, w, c: Interval(ClassifierFree(d, 9.0, fresh(NULL)), d, 1e3, 1e4)),
    "auto": (AutoGuided, lambda d, w, c: AutoGuided(d, w, 1.0)),
    "classifier": (ClassifierGuided, lambda d, w, c: ClassifierGuided(d, c, fresh(LABEL)["label"], 0.0)),
    "loss": (LossGuided, lambda d, w, c: LossGuided(d, missed, 0.0, fresh(SOUGHT))),
    "bounded": (Bounded, lambda d, w, c: Bounded(d, Clip(1e6))),
    "product": (Product, lambda d, w, c: Product([d], [1.0])),
    "mixture": (Mixture, lambda d, w, c: Mixture([d])),
}

STRONG: dict[str, tuple[type, Make]] = {
    "free": (ClassifierFree, lambda d, w, c: ClassifierFree(d, 2.5, fresh(NULL))),
    "free, rescaled": (ClassifierFree, lambda d, w, c: ClassifierFree(d, 2.5, fresh(NULL), rescale=0.7)),
    "several": (
        Several,
        lambda d, w, c: Several(d, [Weighted(fresh(LABEL), 2.0), Weighted(fresh(NULL), -0.7)], fresh(NULL)),
    ),
    "regions": (
        Several,
        lambda d, w, c: Several(
            d, [Weighted(fresh(LABEL), 2, LEFT.clone()), Weighted(fresh(NULL), 0.5, ALOFT.clone())], fresh(NULL)
        ),
    ),
    "within": (Interval, lambda d, w, c: Interval(ClassifierFree(d, 2.5, fresh(NULL)), d, 0.3, 4.0)),
    "auto": (AutoGuided, lambda d, w, c: AutoGuided(d, w, 1.8)),
    "classifier": (ClassifierGuided, lambda d, w, c: ClassifierGuided(d, c, fresh(LABEL)["label"], 1.5)),
    "loss": (LossGuided, lambda d, w, c: LossGuided(d, missed, 0.3, fresh(SOUGHT))),
    "loss of regions": (
        LossGuided,
        lambda d, w, c: LossGuided(
            Several(d, [Weighted(fresh(LABEL), 2.0, LEFT.clone())], fresh(NULL)), missed, 0.3, fresh(SOUGHT)
        ),
    ),
    "classifier of loss": (
        ClassifierGuided,
        lambda d, w, c: ClassifierGuided(LossGuided(d, missed, 0.3, fresh(SOUGHT)), c, fresh(LABEL)["label"], 1.5),
    ),
    "bounded": (Bounded, lambda d, w, c: Bounded(ClassifierFree(d, 2.5, fresh(NULL)), Clip(0.8))),
    "product": (Product, lambda d, w, c: Product([d, w], [1.6, -0.6])),
    "mixture": (Mixture, lambda d, w, c: Mixture([d, w], [0.3, 0.7])),
}


def made(make: Make, schedule: Schedule | None = None) -> tuple[Denoiser, Inner]:
    """A guidance of exact denoisers, and the one within."""
    schedule = schedule or VariancePreserving()
    inner = Inner(schedule, torch.tensor([0.0, 0.1, -0.2, 0.05]))
    weak = Inner(schedule, torch.tensor([0.2, 0.0, -0.1, 0.15]))
    return make(inner, weak, Exact(Gaussian(schedule))), inner


neutral = pytest.mark.parametrize("make", [m for _, m in NEUTRAL.values()], ids=list(NEUTRAL))
strong = pytest.mark.parametrize("make", [m for _, m in STRONG.values()], ids=list(STRONG))


def test_every_kind_of_guidance_is_held_to_these_laws() -> None:
    found = set()
    for info in pkgutil.iter_modules(unfog.sampling.guidance.__path__):
        module = importlib.import_module(f"unfog.sampling.guidance.{info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Denoiser) and cls.__module__ == module.__name__:
                found.add(cls)
    for table in (NEUTRAL, STRONG):
        assert {cls for cls, _ in table.values()} == found


@neutral
def test_no_guidance_is_the_denoiser_bit_for_bit_at_one_evaluation(make: Make) -> None:
    denoiser, inner = made(make)
    for t in (torch.tensor(0.4, dtype=torch.float64), torch.tensor([0.1, 0.9, 0.4, 0.2], dtype=torch.float64)):
        expected = inner(X_T, t, LABEL).x0
        inner.notes.clear()
        assert torch.equal(denoiser(X_T, t, LABEL).x0, expected)
        assert inner.notes == ["4"]


@strong
def test_guidance_does_something(make: Make) -> None:
    denoiser, inner = made(make)
    t = torch.tensor(0.4, dtype=torch.float64)
    assert (denoiser(X_T, t, LABEL).x0 - inner(X_T, t, LABEL).x0).abs().amax(1).min() > 1e-3


@strong
def test_an_example_is_guided_alike_whatever_its_batch(make: Make) -> None:
    denoiser, _ = made(make)
    t = torch.tensor([0.2, 0.5, 0.05, 0.9], dtype=torch.float64)
    whole = denoiser(X_T, t, LABEL).x0
    for chosen in ([2], [3, 1], [1, 1, 0, 2, 3]):
        index = torch.tensor(chosen)
        some = denoiser.select(index)(X_T[index], t[index], {"label": LABEL["label"][index]}).x0
        torch.testing.assert_close(some, whole[index], rtol=0, atol=1e-12)


@strong
def test_a_time_for_each_example_is_a_time_for_all(make: Make) -> None:
    denoiser, _ = made(make)
    t = torch.tensor([0.2, 0.5, 0.05, 0.9], dtype=torch.float64)
    whole = denoiser(X_T, t, LABEL).x0
    for k in range(4):
        torch.testing.assert_close(denoiser(X_T, t[k], LABEL).x0[k], whole[k], rtol=0, atol=1e-12)


@strong
def test_a_trajectory_begins_within_and_what_is_prepared_answers_alike(make: Make) -> None:
    denoiser, inner = made(make)
    times = [torch.tensor(t, dtype=torch.float64) for t in (1e-3, 0.3, 0.99)]
    other = torch.tensor(0.6, dtype=torch.float64)
    begun = denoiser.begin().prepared(times)
    assert "begun" in inner.notes
    index = torch.tensor([3, 0])
    for t in (*times, other):
        expected = denoiser(X_T, t, LABEL).x0
        torch.testing.assert_close(begun(X_T, t, LABEL).x0, expected, rtol=0, atol=1e-13)
        some = begun.select(index)(X_T[index], t, {"label": LABEL["label"][index]}).x0
        torch.testing.assert_close(some, expected[index], rtol=0, atol=1e-12)


@strong
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_have_the_dtype_of_the_data(make: Make, dtype: torch.dtype) -> None:
    denoiser, _ = made(make)
    found = denoiser(X_T.to(dtype), torch.tensor(0.4, dtype=torch.float64), LABEL).x0
    assert found.dtype == dtype
    expected = denoiser(X_T, torch.tensor(0.4, dtype=torch.float64), LABEL).x0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0)


@strong
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_estimates_at_both_ends_are_finite_where_no_signal_is_left(make: Make, t: float) -> None:
    denoiser, _ = made(make, Cosine())
    assert denoiser(X_T, torch.tensor(t, dtype=torch.float64), LABEL).x0.isfinite().all()


@strong
@pytest.mark.parametrize(
    "method", [DDIM(), RK45(rtol=0.05, atol=0.05, sigma_min=0.05), Picard(window=3)], ids=lambda s: type(s).__name__
)
def test_samplers_of_all_kinds_run_it_and_a_sample_does_not_depend_on_its_batch(make: Make, method: Sampler) -> None:
    denoiser, _ = made(make)
    times = Trailing().times(denoiser.process.schedule, 6)
    x = denoiser.process.prior((2,), rng=Rng.of(5, 4), dtype=torch.float64)
    index = torch.tensor([2, 0])
    with torch.inference_mode():
        whole = sample(denoiser, method, times, x, LABEL, rng=Rng.of(5, 4))
        chosen = {"label": LABEL["label"][index]}
        some = sample(denoiser.select(index), method, times, x[index], chosen, rng=Rng.of(5, [2, 0]))
    # Adaptive steps are decided by comparisons, which rounding of other batches must not turn: 12 digits are left.
    torch.testing.assert_close(some, whole[index], rtol=0, atol=1e-10)


# --- with networks


class Network(nn.Module):
    """A small network that saves what it is told for its backward pass."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.table, self.level = nn.Embedding(3, 8), nn.Linear(1, 8)
        self.into, self.out = nn.Linear(2, 8), nn.Linear(8, out)
        generator = torch.Generator().manual_seed(out)
        for parameter in self.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.into(x) + self.level(c_noise[:, None] / 1000.0).to(x.dtype)
        h = h if label is None else h * self.table(label)
        out: Tensor = self.out(torch.tanh(h))
        return out


@pytest.mark.parametrize("name", [name for name in STRONG if name != "mixture"])
def test_networks_are_guided_alike_in_and_out_of_inference_mode(name: str) -> None:
    process = Gaussian(VariancePreserving())
    inner, weak = (NetworkDenoiser(Network(2), process, V()) for _ in range(2))
    nn.init.constant_(weak.network.out.bias, 0.3)  # type: ignore[union-attr, arg-type]
    classifier = NetworkClassifier(Network(2), process, 2)
    make = STRONG[name][1]
    t = torch.tensor(0.4, dtype=torch.float64)
    x_t = X_T.float()
    with torch.no_grad():
        expected = make(inner, weak, classifier)(x_t, t, LABEL).x0
    assert not expected.requires_grad
    with torch.inference_mode():
        told = {key: value.clone() for key, value in LABEL.items()}
        time = t.clone()
        denoiser = make(inner, weak, classifier)
        found = denoiser.begin().prepared([time])(x_t.clone(), time, told).x0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    graph = make(inner, weak, classifier)(x_t, t, LABEL).x0
    assert graph.requires_grad
    torch.testing.assert_close(graph.detach(), expected, rtol=1e-5, atol=1e-6)
