"""The laws that all networks of tokens keep, over all of their forms."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.nn.conv import crop, pad_to_multiple
from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.embed import Fourier
from unfog.diffusion.nn.hybrid import Hybrid, HybridConfig
from unfog.diffusion.nn.mmdit import MMDiT, MMDiTConfig
from unfog.diffusion.nn.positions import Learned, Rotary, Sines
from unfog.diffusion.nn.uvit import UViT, UViTConfig

Config = DiTConfig | UViTConfig | MMDiTConfig | HybridConfig

TINY_DIT = DiTConfig(2, 3, 2, dim=16, depth=2, heads=2, num_classes=5)
TINY_UVIT = UViTConfig(2, 3, 2, dim=16, depth=3, heads=2, num_classes=5)
TINY_MMDIT = MMDiTConfig(2, 3, 2, dim=16, depth=2, heads=2, context_dim=6)
TINY_HYBRID = HybridConfig(2, 3, (8, 16), (1, 1), 2, dim=16, depth=2, heads=2, groups=4, num_classes=5)
ALL = {"vector_dim": 3, "attributes": (2, 3), "context_dim": 6, "image_channels": 1}

VARIANTS: dict[str, Config] = {
    "dit": replace(TINY_DIT, **ALL),
    "dit, modern": replace(TINY_DIT, positions=Rotary(), qk_norm=True, gated_mlp=True, context_dim=6),
    "dit, attributes as tokens": replace(TINY_DIT, attributes=(2, 3), attribute_tokens=(1, 0)),
    "dit, attributes as tokens before others": replace(TINY_DIT, **ALL, attribute_tokens=(0, 0)),
    "dit, learned": replace(TINY_DIT, positions=Learned((3, 4)), num_classes=None),
    "dit, sequences": replace(TINY_DIT, axes=1, context_dim=6),
    "dit, videos": replace(TINY_DIT, axes=3, patch=(1, 2, 2), positions=Sines(step=0.5, window=4)),
    "dit, rotary videos": replace(TINY_DIT, axes=3, patch=(2, 1, 2), positions=Rotary()),
    "uvit": replace(TINY_UVIT, **ALL),
    "uvit, published": replace(TINY_UVIT, positions=Learned((4, 4)), smooth=False),
    "uvit, modern": replace(TINY_UVIT, positions=Rotary(), qk_norm=True, time=Fourier(), context_dim=6),
    "uvit, sequences": replace(TINY_UVIT, axes=1, num_classes=None),
    "uvit, videos": replace(TINY_UVIT, axes=3, patch=(1, 2, 2)),
    "mmdit": replace(TINY_MMDIT, num_classes=5, **ALL),
    "mmdit, modern": replace(TINY_MMDIT, positions=Rotary(), qk_norm=True),
    "mmdit, sequences": replace(TINY_MMDIT, axes=1, positions=Learned((5,))),
    "mmdit, videos": replace(TINY_MMDIT, axes=3, patch=(1, 2, 2), vector_dim=3),
    "hybrid": replace(TINY_HYBRID, **ALL),
    "hybrid, modern": replace(TINY_HYBRID, positions=Rotary(), qk_norm=True, gated_mlp=True, patch=1),
    "hybrid, sequences": replace(TINY_HYBRID, axes=1, widths=(16,), blocks=(0,)),
    "hybrid, videos": replace(TINY_HYBRID, axes=3, halve_time=False, patch=(1, 2, 2), context_dim=6),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
READING = {name: config for name, config in VARIANTS.items() if config.context_dim is not None}
reading = pytest.mark.parametrize("config", READING.values(), ids=READING.keys())
each_kind = pytest.mark.parametrize(
    "config", [TINY_DIT, TINY_UVIT, TINY_MMDIT, TINY_HYBRID], ids=["dit", "uvit", "mmdit", "hybrid"]
)

SIZES = {1: [(1,), (9,)], 2: [(1, 1), (7, 13)], 3: [(1, 1, 1), (3, 5, 4)]}


def fresh(config: Config) -> nn.Module:
    torch.manual_seed(0)
    match config:
        case DiTConfig():
            return DiT(config)
        case UViTConfig():
            return UViT(config)
        case MMDiTConfig():
            return MMDiT(config)
        case HybridConfig():
            return Hybrid(config)


def build(config: Config, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network whose zero-initialised layers are not zero, so that everything in it matters."""
    network = fresh(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.to(dtype).eval()


def inputs(
    config: Config, size: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Three examples with every condition that the network has."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    space = (4, 6, 8)[-config.axes :] if size is None else size
    cond: dict[str, Tensor] = {}
    if config.num_classes:
        cond["label"] = torch.tensor([0, 3, 5])
    if config.vector_dim:
        cond["vector"] = draw(3, config.vector_dim)
    if config.attributes:
        cond["attributes"] = torch.tensor([[0, 1], [1, 3], [2, 0]])
    if config.context_dim:
        cond["context"] = draw(3, 4, config.context_dim)
        cond["context_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]).bool()
    if config.image_channels:
        cond["image"] = draw(3, config.image_channels, *space)
    return draw(3, config.in_channels, *space), torch.tensor([1.0, 40.0, 999.0]), cond


@variants
def test_the_answer_has_the_size_of_the_array(config: Config) -> None:
    network = build(config)
    for size in SIZES[config.axes]:
        x, c_noise, cond = inputs(config, size)
        with torch.no_grad():
            out = network(x, c_noise, **cond)
        assert out.shape == (3, 3, *size)
        assert out.isfinite().all()


@each_kind
def test_an_odd_image_is_answered_as_the_crop_of_its_padding(config: Config) -> None:
    network = build(config)
    x, c_noise, cond = inputs(config, (5, 7))
    padded, corner = pad_to_multiple(x, 2)
    with torch.no_grad():
        expected = crop(network(padded, c_noise, **cond), corner, (5, 7))
        assert torch.equal(network(x, c_noise, **cond), expected)


@variants
def test_an_example_does_not_see_its_batch(config: Config) -> None:
    network = build(config)
    x, c_noise, cond = inputs(config)
    with torch.no_grad():
        together = network(x, c_noise, **cond)
        alone = network(x[1:2], c_noise[1:2], **{name: value[1:2] for name, value in cond.items()})
    # Only the order of sums may differ between batch sizes.
    torch.testing.assert_close(alone, together[1:2], rtol=1e-10, atol=1e-10)


@variants
def test_where_a_patch_lies_matters(config: Config) -> None:
    network = build(config)
    x, c_noise, cond = inputs(config)
    moved = {name: value.roll(2, dims=-1) if name == "image" else value for name, value in cond.items()}
    with torch.no_grad():
        difference = network(x.roll(2, dims=-1), c_noise, **moved) - network(x, c_noise, **cond).roll(2, dims=-1)
    assert difference.abs().max() > 1e-4


@variants
def test_every_parameter_learns(config: Config) -> None:
    network = build(config).train()
    x, c_noise, cond = inputs(config)
    network(x, c_noise, **cond).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # As published, the last joint block makes queries of the condition whose answers nobody reads.
    assert [name for name in idle if name != "blocks.1.context.attention.norm.q.weight"] == []


@variants
def test_a_fresh_network_answers_with_zeros(config: Config) -> None:
    x, c_noise, cond = inputs(config, dtype=torch.float32)
    with torch.no_grad():
        assert not fresh(config)(x, c_noise, **cond).any()


@variants
def test_a_network_can_be_rebuilt_from_its_config_and_weights(config: Config) -> None:
    network = build(config)
    torch.manual_seed(7)
    copy = type(network)(network.config).double().eval()
    copy.load_state_dict(network.state_dict())
    x, c_noise, cond = inputs(config)
    with torch.no_grad():
        assert torch.equal(copy(x, c_noise, **cond), network(x, c_noise, **cond))


@each_kind
def test_one_seed_is_one_network(config: Config) -> None:
    one, two = fresh(config).state_dict(), fresh(config).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", ["dit", "uvit, published", "mmdit", "hybrid"])
def test_recomputing_activations_does_not_change_gradients(name: str) -> None:
    config = replace(VARIANTS[name], dropout=0.3, attention_dropout=0.3)
    plain, thrifty = build(config).train(), build(replace(config, checkpoint=True)).train()
    x, c_noise, cond = inputs(config)
    for network in (plain, thrifty):
        torch.manual_seed(5)
        network(x, c_noise, **cond).square().sum().backward()
    for (path, expected), actual in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert expected.grad is not None
        assert actual.grad is not None
        assert torch.equal(expected.grad, actual.grad), path


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
@each_kind
def test_dropout_acts_in_training_only(config: Config, kind: str) -> None:
    changes: dict[str, Any] = {kind: 0.5}
    network = build(replace(config, **changes))
    x, c_noise, cond = inputs(config)
    with torch.no_grad():
        assert torch.equal(network(x, c_noise, **cond), network(x, c_noise, **cond))
        network.train()
        assert not torch.equal(network(x, c_noise, **cond), network(x, c_noise, **cond))


@variants
def test_every_condition_matters(config: Config) -> None:
    network = build(config)
    x, c_noise, cond = inputs(config)
    unlike = {
        "label": lambda label: (label + 1) % 6,
        "attributes": lambda attributes: attributes.roll(1, dims=0),
        "vector": torch.neg,
        "image": torch.neg,
        "context": torch.neg,
        "context_mask": torch.logical_not,
    }
    with torch.no_grad():
        before = network(x, c_noise, **cond)
        for name, value in cond.items():
            after = network(x, c_noise, **{**cond, name: unlike[name](value)})
            # Fresh layers of a width of 16 pass little of some of them on, and float64 resolves 1e-16.
            assert ((after - before).flatten(1).abs().amax(1) > 1e-9).all(), name


@variants
def test_no_label_and_no_attributes_are_their_nulls(config: Config) -> None:
    network = build(config)
    x, c_noise, cond = inputs(config)
    told = dict(cond)
    if config.num_classes:
        del cond["label"]
        told["label"] = torch.full((3,), 5)
    if config.attributes:
        del cond["attributes"]
        told["attributes"] = torch.tensor([[2, 3]]).expand(3, 2)
    with torch.no_grad():
        assert torch.equal(network(x, c_noise, **cond), network(x, c_noise, **told))


@reading
def test_masked_tokens_are_as_good_as_absent(config: Config) -> None:
    network = build(config)
    x, c_noise, cond = inputs(config)
    del cond["context_mask"]
    shorter = {**cond, "context": cond["context"][:, :2]}
    masked = {**cond, "context_mask": torch.tensor([True, True, False, False]).expand(3, 4)}
    with torch.no_grad():
        # Only the order of sums may differ between numbers of tokens.
        torch.testing.assert_close(
            network(x, c_noise, **masked), network(x, c_noise, **shorter), rtol=1e-10, atol=1e-10
        )


@reading
def test_a_context_of_which_nothing_counts_is_not_read_and_gives_finite_gradients(config: Config) -> None:
    network = build(config)
    x, c_noise, cond = inputs(config)
    cond["context_mask"] = torch.zeros(3, 4, dtype=torch.bool)
    out = network(x, c_noise, **cond)
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    with torch.no_grad():
        assert torch.equal(network(x, c_noise, **{**cond, "context": -cond["context"]}), out)


LACKED = {
    "label": (torch.zeros(3, dtype=torch.int64), "set num_classes"),
    "vector": (torch.zeros(3, 2), "set vector_dim"),
    "attributes": (torch.zeros(3, 1, dtype=torch.int64), "set attributes"),
    "image": (torch.zeros(3, 1, 6, 8), "set image_channels"),
    "context": (torch.zeros(3, 1, 6), "set context_dim"),
}


@pytest.mark.parametrize("name", LACKED)
@each_kind
def test_conditions_that_the_network_lacks_are_refused(config: Config, name: str) -> None:
    config = replace(config, num_classes=None)
    x, c_noise, cond = inputs(config)
    if name in cond:
        return  # MMDiT always reads a context
    given, message = LACKED[name]
    with pytest.raises(ValueError, match=message):
        build(config)(x, c_noise, **{**cond, name: given})


@pytest.mark.parametrize("name", ["vector", "context", "image"])
@pytest.mark.parametrize("kind", ["dit", "uvit", "mmdit", "hybrid"])
def test_conditions_that_the_network_needs_must_be_given(kind: str, name: str) -> None:
    x, c_noise, cond = inputs(VARIANTS[kind])
    del cond[name]
    cond.pop("context_mask") if name == "context" else None
    with pytest.raises(ValueError, match=f"needs {name}"):
        build(VARIANTS[kind])(x, c_noise, **cond)


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("context", torch.zeros(3, 4, 5), ValueError),
        ("context", torch.zeros(3, 0, 6), ValueError),
        ("context", torch.zeros(2, 4, 6), ValueError),
        ("context_mask", torch.ones(3, 3, dtype=torch.bool), ValueError),
        ("context_mask", torch.ones(3, 4), TypeError),
        ("image", torch.zeros(3, 1, 6, 7), ValueError),
        ("image", torch.zeros(3, 2, 6, 8), ValueError),
    ],
)
def test_conditions_of_another_shape_are_refused(name: str, given: Tensor, error: type[Exception]) -> None:
    x, c_noise, cond = inputs(VARIANTS["dit"])
    with pytest.raises(error, match=name):
        build(VARIANTS["dit"])(x, c_noise, **{**cond, name: given})


@variants
def test_arrays_with_the_wrong_channels_or_axes_are_refused(config: Config) -> None:
    x, c_noise, cond = inputs(config)
    network = build(config)
    for wrong in (x[:, :1], x[..., 0], x[..., :0]):
        with pytest.raises(ValueError, match="x has shape"):
            network(wrong, c_noise, **cond)


@pytest.mark.parametrize("name", ["dit, modern", "uvit, modern", "mmdit, modern", "hybrid, modern"])
def test_bfloat16_images_are_answered_in_bfloat16(name: str) -> None:
    config = VARIANTS[name]
    x, c_noise, cond = inputs(config, dtype=torch.float32)
    with torch.no_grad():
        exact = build(config, torch.float32)(x, c_noise, **cond)
        out = build(config, torch.bfloat16)(x.bfloat16(), c_noise, **cond)
    assert out.dtype == torch.bfloat16
    # 8 bits a value through a dozen layers.
    assert (out.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"patch": 0}, "patch is 0"),
        ({"patch": (2, 2, 2)}, "one for each of 2 axes"),
        ({"axes": 4}, "axes is 4"),
        ({"context_dim": 0}, "context_dim is 0"),
        ({"image_channels": -1}, "image_channels is -1"),
        ({"attributes": (0,)}, "attributes"),
        ({"heads": 3}, "not divisible by heads 3"),
        ({"dim": 18}, "multiple of 4"),
        ({"mlp_ratio": 0.01}, "leaves no features"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"heads": 16, "positions": Rotary()}, "rotary positions"),
        ({"positions": Learned((4,))}, "grid of 1 axes"),
    ],
)
@each_kind
def test_impossible_shapes_are_refused(config: Config, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)
