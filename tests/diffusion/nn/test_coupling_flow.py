import math

import pytest
import torch
from torch import Tensor

from unfog.diffusion.nn.coupling_flow import CouplingFlow, FlowConfig


def flow(channels: int = 1, size: tuple[int, int] = (8, 8), classes: int | None = 3, seed: int = 0) -> CouplingFlow:
    """A flow in float64 all of whose weights are far from their start, where the couplings do nothing."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        made = CouplingFlow(FlowConfig(channels, size, 6, 2, classes)).double()
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def pictures(count: int, channels: int = 1, size: tuple[int, int] = (8, 8)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(count, channels, *size, generator=generator, dtype=torch.float64) - 1


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (4, 12)), (2, (4, 4))])
def test_the_inverse_undoes_the_map(channels: int, size: tuple[int, int]) -> None:
    made, x, label = flow(channels, size), pictures(4, channels, size), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        z, _ = made(x, label)
        assert z.shape == (4, made.config.dimensions)
        # Rounding of float64, carried through two dozen layers.
        assert (made.inverse(z, label) - x).abs().max() < 1e-10


def test_the_map_undoes_the_inverse() -> None:
    made, label = flow(), torch.tensor([2, 0])
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        x = made.inverse(z, label)
        # Logits of latents far out are formed from 1 - p, which loses digits there.
        assert (made(x, label)[0] - z).abs().max() < 1e-9


@pytest.mark.parametrize(("channels", "size"), [(1, (4, 4)), (2, (4, 8))])
def test_the_log_determinant_is_that_of_the_jacobian(channels: int, size: tuple[int, int]) -> None:
    made, x, label = flow(channels, size), pictures(1, channels, size), torch.tensor([1])
    jacobian = torch.autograd.functional.jacobian(lambda flat: made(flat.view(x.shape), label)[0][0], x.flatten())
    assert isinstance(jacobian, Tensor)
    with torch.no_grad():
        assert float(made(x, label)[1]) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-9)


def test_the_density_is_that_of_the_latents_and_the_determinant() -> None:
    made, x, label = flow(), pictures(3), torch.tensor([0, 1, 2])
    with torch.no_grad():
        z, log_det = made(x, label)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det
        torch.testing.assert_close(made.log_density(x, label), expected)


def test_a_density_has_an_integral_of_one() -> None:
    # The flow's own samples, weighed by another density over its own: the mean weight is that other's integral.
    made, label = flow(classes=None, size=(4, 4)), None
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        x = made.inverse(0.9 * z, label)
        own = made.log_density(x, label)
        # x has the density of latents with standard deviation 0.9: log q = log p + log N(z; 0.9) - log N(z; 1).
        drawn = own - 16 * math.log(0.9) + (0.5 * (0.81 * z.square() - z.square())).sum(1)
        weights = (own - drawn).exp()
    # Its standard error is about 0.007.
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.03)


def test_fitting_makes_data_leave_with_mean_0_and_variance_1_of_each_first_layer() -> None:
    made, x = flow(), pictures(64)
    label = torch.arange(64) % 3
    before = [parameter.clone() for parameter in made.levels[0][1].parameters()]
    made.fit(x, label)
    with torch.no_grad():
        first, _ = made.levels[0][0](torch.nn.functional.pixel_unshuffle(made.logits(x)[0], 2), label)
    assert first.mean((0, 2, 3)).abs().max() < 1e-12
    assert (first.var((0, 2, 3)) - 1).abs().max() < 1e-5  # of the term that keeps constant channels finite
    assert all(torch.equal(a, b) for a, b in zip(before, made.levels[0][1].parameters(), strict=True))


def test_the_class_changes_the_density() -> None:
    made, x = flow(), pictures(1)
    with torch.no_grad():
        densities = [float(made.log_density(x, torch.tensor([k]))) for k in range(3)]
    assert len(set(densities)) == 3


@pytest.mark.parametrize("size", [(7, 8), (2, 2)])
def test_a_size_that_cannot_be_squeezed_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="even height and width of at least 4"):
        FlowConfig(1, size, 8)


def test_a_label_for_a_flow_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="without classes"):
        flow(classes=None).log_density(pictures(1), torch.tensor([0]))
