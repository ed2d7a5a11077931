from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.nn import cost, dit
from unfog.diffusion.nn.conv import crop, pad_to_multiple
from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.embed import Fourier

TINY = DiTConfig(in_channels=2, out_channels=3, patch=2, dim=16, depth=2, heads=2, num_classes=5)
VARIANTS = {
    "classes": TINY,
    "no classes": replace(TINY, num_classes=None),
    "vector": replace(TINY, vector_dim=3),
    "Fourier": replace(TINY, time=Fourier()),
    "large patches": replace(TINY, patch=4, mlp_ratio=2.0),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def build(config: DiTConfig, dtype: torch.dtype = torch.float32) -> DiT:
    """A network whose zero-initialised layers are not zero, so that everything in it matters."""
    torch.manual_seed(0)
    network = DiT(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.to(dtype).eval()


def inputs(config: DiTConfig, batch: int = 3, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, *size, generator=generator)
    return x, torch.linspace(0, 999, batch)


def answer(network: DiT, x: Tensor, c_noise: Tensor) -> Tensor:
    dim = network.config.vector_dim
    vector = None if dim is None else torch.linspace(-1, 1, len(x) * dim, dtype=x.dtype).view(len(x), dim)
    label = torch.arange(len(x)) if network.config.num_classes else None
    out: Tensor = network(x, c_noise, label=label, vector=vector)
    return out


@variants
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 8), (28, 28)])
def test_the_answer_has_the_size_of_the_image(config: DiTConfig, size: tuple[int, int]) -> None:
    with torch.no_grad():
        out = answer(build(config), *inputs(config, size=size))
    assert out.shape == (3, 3, *size)
    assert out.isfinite().all()


def test_an_odd_image_is_answered_as_the_crop_of_its_padding() -> None:
    network = build(TINY)
    x, c_noise = inputs(TINY, size=(7, 13))
    padded, corner = pad_to_multiple(x, TINY.patch)
    with torch.no_grad():
        expected = crop(answer(network, padded, c_noise), corner, (7, 13))
        assert torch.equal(answer(network, x, c_noise), expected)


@variants
def test_an_example_does_not_see_its_batch(config: DiTConfig) -> None:
    network = build(config, torch.float64)
    x, c_noise = inputs(config)
    label = torch.arange(3) if config.num_classes else None
    vector = torch.randn(3, config.vector_dim).double() if config.vector_dim else None
    with torch.no_grad():
        together = network(x.double(), c_noise, label=label, vector=vector)
        alone = network(
            x[1:2].double(),
            c_noise[1:2],
            label=None if label is None else label[1:2],
            vector=None if vector is None else vector[1:2],
        )
    # Only the order of sums may differ between batch sizes.
    torch.testing.assert_close(alone, together[1:2], rtol=1e-10, atol=1e-10)


def test_where_a_patch_lies_matters() -> None:
    network = build(TINY, torch.float64)
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        moved = answer(network, x.double().roll(2, dims=-1), c_noise)
        still = answer(network, x.double(), c_noise).roll(2, dims=-1)
    assert (moved - still).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(kind: str) -> None:
    changes: dict[str, Any] = {kind: 0.5}
    network = build(replace(TINY, **changes))
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        assert torch.equal(answer(network, x, c_noise), answer(network, x, c_noise))
        network.train()
        assert not torch.equal(answer(network, x, c_noise), answer(network, x, c_noise))


def test_channels_last_gives_the_same_answer() -> None:
    network = build(TINY, torch.float64)
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        plain = answer(network, x.double(), c_noise)
        network.to(memory_format=torch.channels_last)
        last = answer(network, x.double().to(memory_format=torch.channels_last), c_noise)
    # Other kernels sum in another order.
    torch.testing.assert_close(last, plain, rtol=1e-10, atol=1e-10)


@variants
def test_every_parameter_learns(config: DiTConfig) -> None:
    network = build(config).train()
    answer(network, *inputs(config)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@variants
def test_a_fresh_network_answers_with_zeros(config: DiTConfig) -> None:
    with torch.no_grad():
        assert not answer(DiT(config), *inputs(config)).any()


def test_a_fresh_block_is_the_identity() -> None:
    x, embedding = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(DiT(TINY).blocks[0](x, embedding), x)


def test_patches_are_initialised_as_one_linear_map() -> None:
    torch.manual_seed(0)
    network = DiT(replace(TINY, patch=8, dim=256))
    bound = (6 / (2 * 64 + 256)) ** 0.5
    # 32768 uniform draws come within 1 percent of their bound.
    assert 0.99 * bound < network.patch_in.weight.abs().max() <= bound


def test_conditions_are_embedded_with_the_published_spread() -> None:
    torch.manual_seed(0)
    network = DiT(replace(TINY, dim=64, num_classes=1000))
    assert network.embedder.label is not None
    for weight in (network.embedder.label.weight, network.embedder.time_in.weight):
        # 16384 normal draws and more estimate their deviation to 0.6 percent.
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)


@variants
def test_a_network_can_be_rebuilt_from_its_config_and_weights(config: DiTConfig) -> None:
    network = build(config)
    copy = DiT(network.config).eval()
    copy.load_state_dict(network.state_dict())
    x, c_noise = inputs(config)
    with torch.no_grad():
        assert torch.equal(answer(copy, x, c_noise), answer(network, x, c_noise))


def test_recomputing_activations_does_not_change_gradients() -> None:
    config = replace(TINY, dropout=0.3, attention_dropout=0.3)
    plain, thrifty = build(config).train(), build(replace(config, checkpoint=True)).train()
    for network in (plain, thrifty):
        torch.manual_seed(5)
        answer(network, *inputs(config)).square().sum().backward()
    for (name, expected), actual in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert expected.grad is not None
        assert actual.grad is not None
        assert torch.equal(expected.grad, actual.grad), name


def test_no_label_is_the_null_class() -> None:
    network = build(TINY)
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        assert torch.equal(network(x, c_noise), network(x, c_noise, label=torch.full((3,), 5)))


def test_a_label_for_a_network_without_classes_is_refused() -> None:
    config = replace(TINY, num_classes=None)
    with pytest.raises(ValueError, match="without classes"):
        build(config)(*inputs(config), label=torch.zeros(3, dtype=torch.int64))


def test_images_with_the_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        build(TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1))


def test_bfloat16_images_are_answered_in_bfloat16() -> None:
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        out = answer(build(TINY, torch.bfloat16), x.bfloat16(), c_noise)
        exact = answer(build(TINY), x, c_noise)
    assert out.dtype == torch.bfloat16
    # 8 bits a value through a dozen layers.
    assert (out.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"patch": 0}, "patch is 0"),
        ({"vector_dim": 0}, "vector_dim is 0"),
        ({"heads": 3}, "not divisible by heads 3"),
        ({"dim": 18}, "multiple of 4"),
        ({"dim": 4}, "at least 8"),
        ({"mlp_ratio": 0.01}, "leaves no features"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"time_features": 5}, "time_features is 5"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


# The published numbers (675.1 M for XL/2) count the table of positions, 256 tokens of 1152 features at 32x32
# latents and patch 2, although it is never trained. Here it is computed, so that it must be added to compare.
@pytest.mark.parametrize(
    ("preset", "patch", "published"),
    [
        (dit.small, 2, 32_963_360),
        (dit.base, 4, 130_475_648),
        (dit.large, 8, 458_594_816),
        (dit.extra_large, 2, 675_129_632),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset: Any, patch: int, published: int) -> None:
    config = preset(patch)
    table = (32 // patch) ** 2 * config.dim
    with torch.device("meta"):
        assert cost.parameters(DiT(config)) + table == published


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize(
    ("preset", "dim", "depth"),
    [(dit.small, 384, 12), (dit.base, 768, 12), (dit.large, 1024, 24), (dit.extra_large, 1152, 28)],
)
def test_presets_have_the_parameters_that_their_layers_add_up_to(preset: Any, dim: int, depth: int, patch: int) -> None:
    pixels = patch**2
    ends = 4 * pixels * dim + dim + (2 * dim + 8 * pixels) + (2 * dim + 8 * pixels) * dim
    embedder = 256 * dim + dim + dim**2 + dim + 1001 * dim
    block = (6 + 3 + 1 + 4 + 4) * dim**2 + (6 + 3 + 1 + 4 + 1) * dim  # modulation, qkv, proj, perceptron
    with torch.device("meta"):
        assert cost.parameters(DiT(preset(patch))) == ends + embedder + depth * block


# Peebles and Xie 2023, arXiv 2212.09748, tables 1 and 4, which call multiply-adds "Gflops".
@pytest.mark.parametrize(
    ("preset", "patch", "published"),
    [(dit.small, 4, 1.4), (dit.base, 4, 5.6), (dit.large, 4, 19.7), (dit.extra_large, 2, 118.6)],
)
def test_presets_do_the_published_number_of_operations(preset: Any, patch: int, published: float) -> None:
    with torch.device("meta"):
        count = cost.flops(DiT(preset(patch)), torch.zeros(1, 4, 32, 32), torch.zeros(1))
    assert round(count / 2e9, 1) == published
