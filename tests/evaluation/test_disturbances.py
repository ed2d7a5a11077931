import pytest
import torch

from unfog.evaluation.disturbances import Blur, Clean, Disturbance, Elastic, Jpeg, Noise, Resized, Then, blurred

ALL = [Clean(), Blur(0.8), Noise(0.1), Jpeg(75), Resized(0.5), Elastic(0.5), Then(Blur(0.5), Noise(0.1))]


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 24, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("disturbance", ALL, ids=str)
def test_a_disturbance_is_a_function_of_the_seed_and_the_number(disturbance: Disturbance) -> None:
    given = pictures()
    found = disturbance(given, 3)
    assert (found.shape, found.dtype) == (given.shape, torch.uint8)
    assert torch.equal(disturbance(given[:2], 3), found[:2])
    assert torch.equal(found, given) == (disturbance == Clean())


def test_noise_has_its_standard_deviation() -> None:
    grey = torch.full((8, 3, 24, 24), 128, dtype=torch.uint8)
    spread = (Noise(0.1)(grey, 0).double() / 127.5).std()
    # Five standard errors of 13,824 numbers, 0.003, and the rounding to 8 bits.
    assert float(spread) == pytest.approx(0.1, abs=0.003)


def test_a_blur_has_its_variance_and_keeps_the_sum() -> None:
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[0, 0, 16, 16] = 1
    found = blurred(point.float(), 1.5)[0, 0].double()
    axis = torch.arange(-16.0, 17.0, dtype=torch.float64)
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)
    # The kernel ends at 3.3 standard deviations, which takes about 1 % from its variance.
    assert float((found.sum(0) * axis**2).sum()) == pytest.approx(1.5**2, rel=0.02)


@pytest.mark.parametrize(
    "make", [lambda: Blur(0), lambda: Noise(-1), lambda: Jpeg(96), lambda: Resized(1), lambda: Elastic(0)]
)
def test_values_out_of_range_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="expected"):
        make()
