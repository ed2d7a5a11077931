import math

import pytest
import torch

from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine, VarianceExploding, VariancePreserving, linear


def test_the_prior_has_the_deviation_of_the_last_time() -> None:
    rng = Rng.of(1, 3)
    prior = Gaussian(VarianceExploding(80.0)).prior((4,), rng=rng, dtype=torch.float64)
    assert torch.equal(prior, rng.normal((4,), Purpose.PRIOR).double() * 80.0)
    assert Gaussian(linear()).prior((4,), rng=rng).dtype is torch.float32


def test_noise_belongs_to_the_example_and_has_its_dtype() -> None:
    rng, process = Rng.of(1, 5), Gaussian(VariancePreserving())
    x0 = torch.zeros(5, 2, 3, dtype=torch.float64)
    noise = process.noise_like(x0, rng=rng)
    assert noise.dtype is torch.float64
    assert torch.equal(process.noise_like(x0[2:4], rng=rng[2:4]), noise[2:4])


def test_prior_and_training_noise_of_one_key_differ() -> None:
    rng, process = Rng.of(1, 5), Gaussian(Cosine())
    assert not torch.equal(process.noise_like(torch.zeros(5, 8), rng=rng), process.prior((8,), rng=rng))


def test_a_wrong_number_of_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="one key per example: 3, not 1"):
        Gaussian(Cosine()).noise_like(torch.zeros(3, 2), rng=Rng.of(0, 1))


def test_each_frame_may_have_its_own_time() -> None:
    schedule = VariancePreserving()
    x0 = torch.ones(2, 3, 4, dtype=torch.float64)
    t = torch.tensor([[0.1, 0.5, 1.0], [0.0, 0.2, 0.3]], dtype=torch.float64)
    x_t = Gaussian(schedule).add_noise(x0, torch.zeros_like(x0), t)
    assert torch.equal(x_t, schedule.alpha(t)[..., None].expand(2, 3, 4))


def test_scales_are_formed_in_the_dtype_of_the_times() -> None:
    # In float32, t = 1 - 1e-9 is 1 and the signal would vanish; the state itself stays float32.
    t = torch.tensor([1 - 1e-9], dtype=torch.float64)
    x_t = Gaussian(Cosine()).add_noise(torch.ones(1, 1), torch.zeros(1, 1), t)
    assert x_t.dtype is torch.float32
    assert x_t.item() == pytest.approx(math.pi / 2 * 1e-9, rel=1e-6)


def test_the_kernel_from_clean_data_is_the_marginal() -> None:
    schedule = VariancePreserving()
    t = torch.tensor([1e-6, 0.5, 1.0], dtype=torch.float64)
    kernel = Gaussian(schedule).kernel(torch.zeros_like(t), t)
    torch.testing.assert_close(kernel.scale, schedule.alpha(t), rtol=1e-15, atol=0)
    torch.testing.assert_close(kernel.std, schedule.sigma(t), rtol=1e-15, atol=0)


def test_the_posterior_of_clean_data_is_certain() -> None:
    t = torch.tensor([1e-6, 0.5, 1.0], dtype=torch.float64)
    posterior = Gaussian(Cosine()).posterior(torch.zeros_like(t), t)
    assert (posterior.std == 0).all()
    assert (posterior.x_t_scale == 0).all()
    assert (posterior.x0_scale == 1).all()


def test_from_pure_noise_the_posterior_is_the_marginal() -> None:
    schedule, one = Cosine(), torch.ones((), dtype=torch.float64)
    s = torch.tensor(0.6, dtype=torch.float64)
    posterior = Gaussian(schedule).posterior(s, one)
    assert posterior.x_t_scale == 0
    assert posterior.x0_scale == schedule.alpha(s)
    assert posterior.std == schedule.sigma(s)


def test_kernels_of_close_times_keep_their_digits() -> None:
    schedule = VarianceExploding(1.0)
    s, t = torch.tensor([0.5, 0.5 + 2.0**-40], dtype=torch.float64)
    # t^2 - s^2 = (t - s)(t + s), where the subtraction is exact; the difference of logarithms keeps 52 - 40 bits.
    expected = math.sqrt((t - s).item() * (t + s).item())
    assert Gaussian(schedule).kernel(s, t).std.item() == pytest.approx(expected, rel=2.0**-10)


def test_times_in_sixteen_bits_are_refused() -> None:
    x0 = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="float32 or float64"):
        Gaussian(Cosine()).add_noise(x0, x0, torch.full((2,), 0.5, dtype=torch.bfloat16))
