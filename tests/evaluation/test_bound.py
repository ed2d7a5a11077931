import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from unfog.data.dataset import DataInfo, Field, Report, to_float, to_uint8
from unfog.diffusion import analytic
from unfog.diffusion.bound import decoder_term, prior_term, step_log_variance
from unfog.diffusion.curves import LogLinear
from unfog.diffusion.denoiser import Denoiser, Prediction
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import CleanEnd, Cosine, linear, scaled_linear
from unfog.evaluation.bound import CLEANEST, Effort, measure_bounds
from unfog.sampling.conditioning.conditioner import Label, Unconditional

MEAN, VARIANCE, SHAPE = 0.1, 0.04, (1, 4, 4)
BITS = 1 / (16 * math.log(2))
LITTLE = Effort(count=40, draws=8, steps=50, batch_size=16)


class GaussianData:
    """Pictures of 8 bits whose levels are those of N(MEAN, VARIANCE), rounded."""

    def __init__(self, count):
        drawn = MEAN + VARIANCE**0.5 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
        self.x0 = to_float(to_uint8(drawn))
        self.info = DataInfo("gaussian", count, {"x0": Field(SHAPE, torch.float32)}, None, "", Report(count))

    def __len__(self):
        return len(self.x0)

    def gather(self, ids):
        return {"x0": self.x0[ids], "label": torch.as_tensor(ids) % 3}

    @property
    def moment(self):
        """Of each example, the mean square about MEAN, ``(N,)``."""
        return (self.x0.double() - MEAN).square().flatten(1).mean(1)


DATA = GaussianData(40)


def exact(schedule):
    return analytic.gaussian(Gaussian(schedule), torch.full(SHAPE, MEAN), VARIANCE)


def squared_error(schedule, t):
    """Expected square of x0 - x0_hat over the noise, of data whose mean square about MEAN is that of DATA."""
    alpha, sigma = schedule.scales(t)
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return (1 - gain * alpha) ** 2 * DATA.moment.mean() + (gain * sigma) ** 2


def bounds(schedule, effort=LITTLE, data=DATA):
    return {bound.method: bound for bound in measure_bounds(exact(schedule), Unconditional(), data, effort).bounds}


def close(score, wanted, errors=4.0):
    """Within so many standard errors; the interval is of 1.96, and rather wide, as the times cover it evenly."""
    return abs(score.value - wanted) <= errors / 1.96 * (score.high - score.value) + 1e-12


def test_terms_in_continuous_time_equal_their_closed_forms():
    found = bounds(Cosine())["continuous time"]
    log_snr = torch.linspace(-12, CLEANEST, 4001, dtype=torch.float64)
    rates = 0.5 * log_snr.exp() * squared_error(Cosine(), Cosine().time(log_snr))
    assert close(found.diffusion, float(torch.trapezoid(rates, log_snr)) / math.log(2))
    prior = prior_term(DATA.x0, torch.tensor(-12.0, dtype=torch.float64)).mean() / math.log(2)
    assert found.prior.value == pytest.approx(float(prior), rel=1e-9)
    # Noise half a bin wide: minus the log of the mass of the bin of x about x + s z, averaged over z in N(0, 1).
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[None]
    level = torch.full_like(z, 1 / 127.5 - 1.0 + 100 / 127.5)
    noise = torch.tensor(-CLEANEST, dtype=torch.float64)
    mass = decoder_term(level, level + torch.exp(0.5 * noise) * z, noise)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    assert close(found.reconstruction, float(torch.trapezoid(mass * density, z)) / math.log(2))


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_terms_of_a_chain_equal_their_closed_forms(variance):
    schedule = Cosine()
    found = bounds(schedule)[f"{variance} variance"]
    process, nodes = Gaussian(schedule), torch.arange(1, 51, dtype=torch.float64) / 50
    s, t = nodes[:-1], nodes[1:]
    wider = step_log_variance(process, s, t, float(variance == "beta")) - step_log_variance(process, s, t, 0.0)
    fall = schedule.log_snr(s).exp() - schedule.log_snr(t).exp()
    terms = 0.5 * (wider + torch.expm1(-wider) + fall * squared_error(schedule, t) * torch.exp(-wider))
    assert close(found.diffusion, float(terms.sum()) / math.log(2))
    assert found.prior.value == 0.0
    assert found.steps == 50


def test_a_long_chain_is_continuous_time_between_its_ends():
    # Both begin and end at the same noise here, and decode alike.
    schedule = LogLinear(9.0, -9.0)
    found = bounds(schedule, replace(LITTLE, steps=4000, draws=16))
    one, other = found["continuous time"], found["posterior variance"]
    # A step of 0.0045 in log-SNR makes the term larger by half of that.
    assert other.diffusion.value == pytest.approx(one.diffusion.value, rel=0.01)
    assert other.prior.value == pytest.approx(one.prior.value, rel=1e-12)


def test_the_bound_of_the_exact_denoiser_lies_just_above_the_entropy():
    data = GaussianData(300)
    found = bounds(Cosine(), replace(LITTLE, count=300, draws=4), data)["continuous time"]
    # Of a Gaussian rounded to bins of 2 / 255, which are a tenth of its deviation at most.
    entropy = 0.5 * math.log2(2 * math.pi * math.e * VARIANCE) - math.log2(2 / 255)
    assert entropy < found.total.value < entropy + 0.5


def test_the_parts_add_up_to_the_bound_and_the_shares_to_the_term_of_diffusion():
    for found in bounds(linear(50)).values():
        parts = found.prior.value + found.diffusion.value + found.reconstruction.value
        assert parts == pytest.approx(found.total.value, rel=1e-12)
        assert sum(found.curve.shares.values) == pytest.approx(found.diffusion.value, rel=1e-12)
        assert found.nats.value * BITS == pytest.approx(found.total.value, rel=1e-12)


def test_the_curve_of_continuous_time_is_the_closed_form():
    schedule = Cosine()
    curve = bounds(schedule, replace(LITTLE, draws=24))["continuous time"].curve
    log_snr = torch.tensor(curve.log_snr, dtype=torch.float64)
    wanted = 0.5 * log_snr.exp() * squared_error(schedule, schedule.time(log_snr)) / math.log(2)
    error = torch.tensor(curve.terms.errors, dtype=torch.float64)
    # Five standard errors, for 24 stretches at once, and the bend of the curve within a stretch of 1 in log-SNR.
    assert ((torch.tensor(curve.terms.values, dtype=torch.float64) - wanted).abs() < 5 * error + 0.01).all()


def test_few_times_estimate_the_same_as_many():
    few, many = (bounds(Cosine(), replace(LITTLE, draws=draws)) for draws in (1, 64))
    for method in few:
        assert close(few[method].diffusion, many[method].diffusion.value)


def test_times_in_stretches_bring_seeds_close_together():
    found = [bounds(Cosine(), replace(LITTLE, draws=1, seed=seed))["continuous time"].diffusion for seed in range(12)]
    values = torch.tensor([score.value for score in found])
    within = torch.tensor([(score.high - score.value) / 1.96 for score in found]).mean()
    # The standard error takes examples as independent; times that together cover the range evenly vary less. Twelve
    # seeds give a spread to about 21 %.
    assert values.std() < 0.7 * within


def test_the_batch_size_changes_nothing():
    one, other = (bounds(Cosine(), replace(LITTLE, batch_size=size)) for size in (7, 40))
    for method in one:
        assert one[method].total.value == pytest.approx(other[method].total.value, rel=1e-6)


def test_another_seed_draws_other_times():
    assert bounds(Cosine()) != bounds(Cosine(), replace(LITTLE, seed=1))


class WithVariance(Denoiser):
    """The exact denoiser, which also says where the variance lies."""

    def __init__(self, denoiser, fraction):
        super().__init__()
        self.process, self.denoiser, self.fraction = denoiser.process, denoiser, fraction

    def forward(self, x_t, t, cond=None):
        x0 = self.denoiser(x_t, t, cond).x0
        return Prediction(x0, torch.full_like(x0, self.fraction))


@pytest.mark.parametrize(("fraction", "same"), [(0.0, "posterior variance"), (1.0, "beta variance")])
def test_a_learned_variance_at_an_end_is_that_fixed_one(fraction, same):
    denoiser = WithVariance(exact(linear(50)), fraction)
    found = {b.method: b for b in measure_bounds(denoiser, Unconditional(), DATA, LITTLE).bounds}
    for part in ("total", "diffusion", "reconstruction"):
        assert getattr(found["learned variance"], part).value == pytest.approx(getattr(found[same], part).value)


def test_a_table_is_a_chain_of_its_own_levels():
    assert bounds(linear(40), replace(LITTLE, steps=None))["beta variance"].steps == 40
    first = scaled_linear(40, CleanEnd.FIRST_LEVEL)
    assert bounds(first, replace(LITTLE, steps=None))["beta variance"].steps == 39
    assert bounds(Cosine(), replace(LITTLE, count=4, draws=1, steps=None))["beta variance"].steps == 1000


def test_conditions_are_given_and_named():
    class ToldLabel(Denoiser):
        def __init__(self):
            super().__init__()
            self.process, self.seen = Gaussian(Cosine()), set()

        def forward(self, x_t, t, cond=None):
            self.seen |= set(cond["label"].tolist())
            return Prediction(x_t)

    denoiser = ToldLabel()
    found = measure_bounds(denoiser, Label(3, dropout=1.0), DATA, LITTLE)
    assert denoiser.seen == {0, 1, 2}
    assert found.conditions == ("label",)
    assert "given label" in found.best.total.note


def test_dropout_is_off():
    class Dropping(Denoiser):
        def __init__(self):
            super().__init__()
            self.process, self.dropout = Gaussian(Cosine()), nn.Dropout(0.5)

        def forward(self, x_t, t, cond=None):
            return Prediction(self.dropout(x_t))

    denoiser = Dropping().train()
    assert measure_bounds(denoiser, Unconditional(), DATA, LITTLE) == measure_bounds(
        denoiser, Unconditional(), DATA, LITTLE
    )
    assert denoiser.dropout.training


def test_the_numbers_survive_json():
    found = measure_bounds(exact(Cosine()), Unconditional(), DATA, LITTLE)
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["bounds"][0]["total"]["value"] == found.bounds[0].total.value
    assert (stored["count"], stored["seed"], stored["dimensions"]) == (40, 0, 16)


def test_data_of_other_values_are_refused():
    data = GaussianData(8)
    data.x0 = data.x0 + 0.001
    with pytest.raises(ValueError, match="expected 8-bit data"):
        measure_bounds(exact(Cosine()), Unconditional(), data, LITTLE)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"count": 1}, "at least 2 examples"), ({"draws": 0}, "at least 1 of draws"), ({"steps": 1}, "at least 2 steps")],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Effort(**settings)
