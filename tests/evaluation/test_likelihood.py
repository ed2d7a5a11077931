import json
import math

import pytest
import torch

from unfog.data.dataset import DataInfo, Field, Report, to_float, to_uint8
from unfog.diffusion import analytic
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Rng, seed_of
from unfog.diffusion.schedule import Cosine
from unfog.evaluation.likelihood import Effort, measure_likelihood
from unfog.sampling.adaptive import RK45
from unfog.sampling.conditioning.conditioner import Label, Unconditional
from unfog.sampling.likelihood import dequantized

MEAN, VARIANCE, SHAPE = 0.1, 0.04, (1, 2, 2)
LITTLE = Effort(count=12, probes=2, batch_size=5, solver=RK45(rtol=1e-6, atol=1e-6))


class Pictures:
    """Pictures of 8 bits."""

    def __init__(self, count: int) -> None:
        drawn = MEAN + VARIANCE**0.5 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
        self.x0 = to_float(to_uint8(drawn))
        self.info = DataInfo("pictures", count, {"x0": Field(SHAPE, torch.float32)}, None, "", Report(count))

    def __len__(self) -> int:
        return len(self.x0)

    def gather(self, ids):  # type: ignore[no-untyped-def]
        return {"x0": self.x0[ids], "label": torch.as_tensor(ids) % 3}


DATA = Pictures(12)
EXACT = analytic.gaussian(Gaussian(Cosine()), torch.full(SHAPE, MEAN), VARIANCE)


def test_on_gaussian_data_it_is_the_density_of_the_dequantised_pictures() -> None:
    found = measure_likelihood(EXACT, Unconditional(), DATA, LITTLE)
    # The trace of a Gaussian's field does not depend on the probe, for its Jacobian is a multiple of the identity.
    noisy = dequantized(DATA.x0, rng=Rng.of(seed_of("likelihood", 0), 12)).double()
    variance = VARIANCE + found.sigma**2
    nats = 0.5 * ((noisy - MEAN).square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)
    bits = (nats / 4 + math.log(127.5)) / math.log(2)
    # float32 states: 1e-5 of errors of the solver and of rounding.
    assert found.bits.value == pytest.approx(bits.mean().item(), abs=1e-4)
    assert found.nats.value == pytest.approx(found.bits.value * 4 * math.log(2), rel=1e-9)
    assert found.bits.low < found.bits.value < found.bits.high


def test_the_batch_size_changes_nothing_but_rounding() -> None:
    whole = measure_likelihood(EXACT, Unconditional(), DATA, Effort(count=12, batch_size=12))
    parts = measure_likelihood(EXACT, Unconditional(), DATA, Effort(count=12, batch_size=5))
    assert whole.bits.value == pytest.approx(parts.bits.value, abs=1e-6)
    assert whole.evaluations == parts.evaluations


def test_conditions_are_named_and_the_numbers_can_be_written() -> None:
    classes = analytic.mixture(Gaussian(Cosine()), torch.full((3, *SHAPE), MEAN), VARIANCE)
    found = measure_likelihood(classes, Label(3, 0.1), DATA, LITTLE)
    written = json.loads(json.dumps(found.to_dict()))
    assert written["conditions"] == ["label"]
    assert written["dimensions"] == 4
    assert written["effort"]["probes"] == 2


@pytest.mark.parametrize(
    ("wrong", "said"), [({"count": 1}, "count"), ({"probes": 0}, "probes"), ({"batch_size": 0}, "batch_size")]
)
def test_efforts_that_measure_nothing_are_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Effort(**wrong)  # type: ignore[arg-type]
