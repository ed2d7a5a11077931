import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.orders import diffusers_peer, k_diffusion_peer, page
from benchmarks.orders.cases import Case, cases
from benchmarks.orders.measure import BUDGETS, of_ours, of_peer
from benchmarks.orders.methods import OURS, discovered, methods
from benchmarks.orders.record import Entry, Found, Jump, Record, Row

from unfog.diffusion.random import Rng
from unfog.recipe.kinds import KINDS
from unfog.sampling.sampler import Sampler, TableSampler, sample

# diffusers turns tensors into arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS = 9  # a multiple of every group of stages


@pytest.fixture(scope="module")
def case() -> Case:
    return next(cases())


def ours(case: Case, key: str) -> torch.Tensor:
    x, times = case.laboratory.start(), case.times(STEPS)
    x = sample(case.laboratory.setup.denoiser(len(x)), OURS[key][1], times, x, rng=Rng.of(0, len(x)))
    return x / case.schedule.alpha(times[-1])


# PNDM's half-way points lie in time here and there; its start is compared by tests/golden.
SAME = ["ddim", "euler", "dpm++ 2m", "unipc 1 bh1", "unipc 2 bh2", "unipc 3 bh1", "unipc 2 of eps", "deis 2", "plms"]


@pytest.mark.parametrize("key", SAME)
def test_diffusers_takes_the_same_steps_as_we_do(case: Case, key: str) -> None:
    peer = diffusers_peer.PEERS[key]
    found = peer.solve(case.denoise, case.start, lambda n: case.levels(case.times(n)), STEPS)
    # The same numbers by other formulas, from states of up to 20.
    torch.testing.assert_close(found, ours(case, key), rtol=0, atol=1e-9)


@pytest.mark.parametrize("key", ["euler", "heun", "dpm++ 2s", "dpm++ 2m"])
def test_k_diffusion_takes_the_same_steps_as_we_do(case: Case, key: str) -> None:
    if not k_diffusion_peer.available():
        pytest.skip("k-diffusion is installed for the benchmarks alone")
    peer = k_diffusion_peer.PEERS[key]
    found = peer.solve(case.denoise, case.start, lambda n: case.levels(case.times(n)), STEPS)
    torch.testing.assert_close(found, ours(case, key), rtol=0, atol=1e-9)


def test_every_table_that_recipes_name_is_measured() -> None:
    measured = [type(method.ours) for method in methods() if method.ours is not None]
    tables = {kind for kind in KINDS[Sampler].values() if issubclass(kind, TableSampler)} - {type(None)}
    missing = {kind.__name__ for kind in tables} - {kind.__name__ for kind in measured}
    assert missing <= {"Fitted"}  # it needs a model to be fitted to


def test_no_sampler_is_measured_twice() -> None:
    found = [method.ours for method in methods() if method.ours is not None]
    repeated = [sampler for k, sampler in enumerate(found) if sampler in found[:k]]
    # One table under two names: Euler is DDIM, and DPM2 is DPM-Solver-2.
    assert repeated == [OURS["euler"][1], OURS["dpm 2s"][1]]
    assert len(list(discovered())) >= 10


def test_budgets_are_kept_and_orders_measured(case: Case) -> None:
    found = of_ours(OURS["heun"][1], case)
    assert all(asked is not None and asked <= budget for asked, budget in zip(found.asked, BUDGETS, strict=True))
    assert found.order == pytest.approx(2.0, abs=0.1)
    theirs = of_peer(diffusers_peer.PEERS["euler"], case)
    assert theirs.asked == BUDGETS
    assert theirs.order == pytest.approx(1.0, abs=0.1)


def test_the_page_tells_what_falls_short() -> None:
    def entry(library: str, claimed: int, order: float) -> Entry:
        return Entry(library, f"{library}'s", claimed, {"data": {"where": Found((0.1, None), (5, None), order)}})

    rows = [
        Row("good", False, [entry("Unfog", 2, 1.9), entry("diffusers", 3, 2.1)]),
        Row("noisy", True, [entry("Unfog", 1, 0.7)]),
    ]
    record = Record({"torch": "2"}, [5, 10], [8, 16], rows, [Jump("data", "where", 0.5, [0.25, 0.125])])
    told = "\n".join(page.render(record))
    assert "| good | 2 | 1.90 | **2.10 (claims 3)** | – |" in told
    assert "None of Unfog's 1 falls short." in told
    assert "- diffusers `diffusers's` (good): claimed 3, 2.10" in told
    assert "| noisy | where | 1 | **0.70** | 0.1 | – |" in told
    assert "| data | where | 0.5 | 0.25 | 0.12 |" in told
    assert "| good | Unfog | **0.1** | – |" in told
