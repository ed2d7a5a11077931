import pytest
import torch
from torch import Tensor

from unfog.diffusion.nn.autoencoder import Autoencoder
from unfog.diffusion.nn.gan import Critic, Generator
from unfog.diffusion.nn.stages import StageConfig

CONFIG = StageConfig(channels=1, size=(8, 12), width=4, latent_dim=5, num_classes=3)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "halvings", "coarsest"), [((8, 8), 1, (4, 4)), ((28, 28), 2, (7, 7)), ((32, 64), 3, (4, 8))]
)
def test_the_side_is_halved_as_long_as_it_goes(size: tuple[int, int], halvings: int, coarsest: tuple[int, int]) -> None:
    config = StageConfig(3, size, 8)
    assert (config.halvings, config.coarsest) == (halvings, coarsest)
    assert len(config.widths) == halvings + 1
    assert config.widths[-1] == 8
    assert config.widths[0] == min(2**halvings, 4) * 8


@pytest.mark.parametrize("size", [(7, 7), (6, 6), (9, 32)])
def test_a_size_that_cannot_be_halved_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="can be halved"):
        StageConfig(1, size, 8)


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    generator = Generator(CONFIG).double()
    z, label = normal(4, 5).double(), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        together = generator(z, label)
        alone = torch.cat([generator(z[k : k + 1], label[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert together.shape == (4, 1, 8, 12)
    assert together.abs().max() < 1


def test_vector_and_class_both_change_the_picture() -> None:
    generator, z = Generator(CONFIG), normal(2, 5)
    with torch.no_grad():
        x = generator(z[[0, 0, 1]], torch.tensor([0, 1, 0]))
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])


def test_the_critic_adds_the_projection_on_the_class() -> None:
    critic, x = Critic(CONFIG), normal(2, 1, 8, 12)
    assert critic.label is not None
    with torch.no_grad():
        h = critic.analysis(x).mean((2, 3))
        expected = critic.score(h)[:, 0] + torch.stack([critic.label.weight[2] @ h[0], critic.label.weight[0] @ h[1]])
        torch.testing.assert_close(critic(x, torch.tensor([2, 0])), expected)


def test_spectral_normalisation_bounds_every_weight() -> None:
    critic, x, label = Critic(CONFIG, spectral=True), normal(2, 1, 8, 12), torch.tensor([0, 1])
    with torch.no_grad():
        for _ in range(100):  # the power iteration converges while it is used
            critic(x, label)
        critic.eval()
        convolutions = [module for module in critic.modules() if isinstance(module, torch.nn.Conv2d)]
        assert len(convolutions) == 5
        for module in [*convolutions, critic.score]:
            # Largest singular values that lie close together are told apart slowly.
            assert float(torch.linalg.matrix_norm(module.weight.flatten(1), 2)) == pytest.approx(1.0, abs=0.02)


def test_the_autoencoder_has_a_posterior_of_each_picture_and_class() -> None:
    network, x = Autoencoder(CONFIG), normal(1, 1, 8, 12).expand(2, -1, -1, -1)
    with torch.no_grad():
        mean, log_variance = network.encode(x, torch.tensor([0, 1]))
        assert mean.shape == log_variance.shape == (2, 5)
        assert not torch.equal(mean[0], mean[1])
        assert network.decode(mean, torch.tensor([0, 1])).shape == (2, 1, 8, 12)


def test_a_missing_label_is_refused() -> None:
    with pytest.raises(ValueError, match="label of shape"):
        Generator(CONFIG)(normal(2, 5))


def test_with_patches_the_finest_grid_is_coarser_than_the_picture() -> None:
    config = StageConfig(1, (16, 16), 4, latent_dim=5, patch=2)
    assert (config.finest, config.halvings, config.coarsest) == ((8, 8), 1, (4, 4))
    with torch.no_grad():
        x = Generator(config)(normal(2, 5))
        assert x.shape == (2, 1, 16, 16)
        assert Critic(config)(x).shape == (2,)


def test_a_patch_that_does_not_divide_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="patch"):
        StageConfig(1, (28, 28), 4, patch=3)
