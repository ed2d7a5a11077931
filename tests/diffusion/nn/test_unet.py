from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unfog.diffusion.nn import cost
from unfog.diffusion.nn.attention import SpatialAttention
from unfog.diffusion.nn.conv import Resample, crop, pad_to_multiple
from unfog.diffusion.nn.embed import Fourier
from unfog.diffusion.nn.residual import ResidualBlock
from unfog.diffusion.nn.unet import UNet, UNetConfig

TINY = UNetConfig(
    in_channels=2,
    out_channels=3,
    widths=(8, 12, 16),
    blocks=(0, 1, 1),
    attention=(1,),
    head_dim=4,
    groups=4,
    num_classes=5,
)
VARIANTS = {
    "scale-shift": TINY,
    "additive": replace(TINY, scale_shift=False),
    "residual resampling": replace(TINY, resample=Resample.RESIDUAL),
    "pooling": replace(TINY, resample=Resample.POOL),
    "TensorFlow padding": replace(TINY, same_padding=True),
    "patches": replace(TINY, patch=2, widths=(8, 12), blocks=(1, 1)),
    "rescaled": replace(TINY, rescale=True),
    "Fourier": replace(TINY, time=Fourier()),
    "vector": replace(TINY, vector_dim=3),
    "one level": replace(TINY, widths=(8,), blocks=(1,), attention=(), head_dim=None),
    "no attention": replace(TINY, attention=(), middle_attention=False),
    "no blocks going down": replace(TINY, blocks=(0, 0, 0)),
    "all of NCSN++": replace(
        TINY,
        attend_once_up=True,
        head_dim=None,
        heads=4,
        stem_width=8,
        resample=Resample.RESIDUAL,
        smooth=True,
        project_resized=True,
        input_pyramid=True,
        rescale=True,
        time=Fourier(),
        label_early=True,
    ),
    "context and image": replace(
        TINY, attention=(), image_channels=1, context_dim=6, transformer_depth=(0, 1, 2), middle_depth=1
    ),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def build(config: UNetConfig, dtype: torch.dtype = torch.float32) -> UNet:
    """A network whose zero-initialised layers are not zero, so that everything in it matters."""
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.to(dtype).eval()


def inputs(config: UNetConfig, batch: int = 3, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, *size, generator=generator)
    return x, torch.linspace(0, 999, batch)


def answer(network: UNet, x: Tensor, c_noise: Tensor) -> Tensor:
    dim = network.config.vector_dim
    vector = None if dim is None else torch.linspace(-1, 1, len(x) * dim, dtype=x.dtype).view(len(x), dim)
    label = torch.arange(len(x)) if network.config.num_classes else None
    out: Tensor = network(x, c_noise, label=label, vector=vector, **beside(network.config, x))
    return out


def beside(config: UNetConfig, x: Tensor) -> dict[str, Tensor]:
    """The conditions of a network with context and image, for `x`."""
    if config.context_dim is None:
        return {}
    context = torch.linspace(-1, 1, len(x) * 2 * config.context_dim, dtype=x.dtype).view(len(x), 2, -1)
    return {"context": context, "image": x[:, : config.image_channels].square()}


@variants
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 8)])
def test_the_answer_has_the_size_of_the_image(config: UNetConfig, size: tuple[int, int]) -> None:
    with torch.no_grad():
        out = answer(build(config), *inputs(config, size=size))
    assert out.shape == (3, 3, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("size", [28, 32])
def test_published_sizes_need_no_padding_at_three_levels(size: int) -> None:
    assert size % TINY.multiple == 0
    with torch.no_grad():
        assert answer(build(TINY), *inputs(TINY, batch=1, size=(size, size))).shape[-2:] == (size, size)


def test_an_odd_image_is_answered_as_the_crop_of_its_padding() -> None:
    network = build(TINY)
    x, c_noise = inputs(TINY, size=(7, 13))
    padded, corner = pad_to_multiple(x, TINY.multiple)
    with torch.no_grad():
        expected = crop(answer(network, padded, c_noise), corner, (7, 13))
        assert torch.equal(answer(network, x, c_noise), expected)


def test_what_was_done_to_pictures_reaches_the_answer() -> None:
    network = build(replace(TINY, augmentation=9))
    x, c_noise = inputs(TINY)
    told = torch.zeros(3, 9)
    told[1:] = 0.5
    with torch.no_grad():
        plain, done = (network(x, c_noise, **{} if a is None else {"augmentation": a}) for a in (None, told))
    assert torch.equal(done[0], plain[0])
    assert ((done - plain)[1:].abs().amax((1, 2, 3)) > 1e-4).all()


@variants
def test_an_example_does_not_see_its_batch(config: UNetConfig) -> None:
    network = build(config, torch.float64)
    x, c_noise = inputs(config)
    label = torch.arange(3) if config.num_classes else None
    vector = torch.randn(3, config.vector_dim).double() if config.vector_dim else None
    others = beside(config, x.double())
    with torch.no_grad():
        together = network(x.double(), c_noise, label=label, vector=vector, **others)
        alone = network(
            x[1:2].double(),
            c_noise[1:2],
            label=None if label is None else label[1:2],
            vector=None if vector is None else vector[1:2],
            **{name: value[1:2] for name, value in others.items()},
        )
    # Only the order of sums may differ between batch sizes.
    torch.testing.assert_close(alone, together[1:2], rtol=1e-10, atol=1e-10)


@variants
def test_evaluation_is_deterministic_despite_dropout(config: UNetConfig) -> None:
    network = build(replace(config, dropout=0.5, attention_dropout=0.5))
    x, c_noise = inputs(config)
    with torch.no_grad():
        assert torch.equal(answer(network, x, c_noise), answer(network, x, c_noise))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training(kind: str) -> None:
    changes: dict[str, Any] = {kind: 0.5}
    network = build(replace(TINY, **changes)).train()
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        assert not torch.equal(answer(network, x, c_noise), answer(network, x, c_noise))


@variants
def test_channels_last_gives_the_same_answer(config: UNetConfig) -> None:
    network = build(config, torch.float64)
    x, c_noise = inputs(config)
    with torch.no_grad():
        plain = answer(network, x.double(), c_noise)
        network.to(memory_format=torch.channels_last)
        last = answer(network, x.double().to(memory_format=torch.channels_last), c_noise)
    # Other kernels sum in another order.
    torch.testing.assert_close(last, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("resample", Resample)
def test_channels_last_survives_every_block(resample: Resample) -> None:
    config = replace(TINY, resample=resample)
    network = build(config).to(memory_format=torch.channels_last)
    kept: dict[str, bool] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            kept[name] = out.is_contiguous(memory_format=torch.channels_last)

        return note

    for name, module in network.named_modules():
        if isinstance(module, ResidualBlock | SpatialAttention | nn.Conv2d):
            module.register_forward_hook(watch(name))
    x, c_noise = inputs(config)
    with torch.no_grad():
        answer(network, x.to(memory_format=torch.channels_last), c_noise)
    assert [name for name, value in kept.items() if not value] == []


@variants
def test_every_parameter_learns(config: UNetConfig) -> None:
    network = build(config).train()
    answer(network, *inputs(config)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@variants
def test_a_fresh_network_answers_with_zeros(config: UNetConfig) -> None:
    with torch.no_grad():
        assert not answer(UNet(config), *inputs(config)).any()


@variants
def test_a_network_can_be_rebuilt_from_its_config_and_weights(config: UNetConfig) -> None:
    network = build(config)
    copy = UNet(network.config).eval()
    copy.load_state_dict(network.state_dict())
    x, c_noise = inputs(config)
    with torch.no_grad():
        assert torch.equal(answer(copy, x, c_noise), answer(network, x, c_noise))


@pytest.mark.parametrize("resample", Resample)
def test_recomputing_activations_does_not_change_gradients(resample: Resample) -> None:
    config = replace(TINY, resample=resample, dropout=0.3, attention_dropout=0.3)
    plain, thrifty = build(config).train(), build(replace(config, checkpoint=True)).train()
    for network in (plain, thrifty):
        torch.manual_seed(5)
        answer(network, *inputs(config)).square().sum().backward()
    for (name, expected), actual in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert expected.grad is not None
        assert actual.grad is not None
        assert torch.equal(expected.grad, actual.grad), name


def test_recomputing_keeps_fewer_activations() -> None:
    kept = {}
    for checkpoint in (False, True):
        network = build(replace(TINY, checkpoint=checkpoint)).train()
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            answer(network, *inputs(TINY))
        kept[checkpoint] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_no_label_is_the_null_class() -> None:
    network = build(TINY)
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        assert torch.equal(network(x, c_noise), network(x, c_noise, label=torch.full((3,), 5)))


def test_the_label_reaches_the_answer() -> None:
    network = build(TINY)
    x, c_noise = inputs(TINY)
    with torch.no_grad():
        first, second = (network(x, c_noise, label=torch.full((3,), k)) for k in (0, 1))
    assert (first != second).flatten(1).any(dim=1).all()


def test_a_label_for_a_network_without_classes_is_refused() -> None:
    config = replace(TINY, num_classes=None)
    with pytest.raises(ValueError, match="without classes"):
        build(config)(*inputs(config), label=torch.zeros(3, dtype=torch.int64))


def test_images_with_the_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        build(TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1))


@variants
def test_float64_images_are_answered_in_float64(config: UNetConfig) -> None:
    x, c_noise = inputs(config)
    with torch.no_grad():
        double = answer(build(config, torch.float64), x.double(), c_noise)
        single = answer(build(config), x, c_noise)
    assert double.dtype == torch.float64
    # Phases of up to 999 are rounded to 3e-5 in float32, Fourier phases of 1e5 to 1e-2.
    tolerance = 0.1 if isinstance(config.time, Fourier) else 1e-3
    torch.testing.assert_close(single.double(), double, rtol=tolerance, atol=tolerance)


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
        ({"widths": (), "blocks": ()}, "widths is empty"),
        ({"blocks": (1, 1)}, "equally long"),
        ({"blocks": (1, -1, 1)}, "at least 0"),
        ({"attention": (3,)}, "different levels in 0..2"),
        ({"attention": (1, 1)}, "different levels"),
        ({"head_dim": 5}, "head_dim 5 does not divide"),
        ({"head_dim": 0}, "head_dim 0 does not divide"),
        ({"groups": 8}, "does not suit 8 groups"),
        ({"groups": 5}, "does not suit 5 groups"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"patch": 0}, "patch is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"time_features": 7}, "even time_features"),
        ({"resample": Resample.POOL, "same_padding": True}, "same_padding"),
        ({"axes": 4}, "axes is 4"),
        ({"halve_time": False}, "needs axes=3"),
        ({"heads": 4}, "say the same"),
        ({"head_dim": None, "heads": 5}, "heads 5 does not divide"),
        ({"attend_once_up": True, "attention": ()}, "attend_once_up"),
        ({"stem_width": 6}, "width 6 does not suit 4 groups"),
        ({"smooth": True}, "smooth speaks of"),
        ({"project_resized": True}, "project_resized"),
        ({"input_pyramid": True, "widths": (8,), "blocks": (1,), "attention": ()}, "more than one level"),
        ({"image_channels": -1}, "image_channels is -1"),
        ({"augmentation": -1}, "augmentation is -1"),
        ({"context_dim": 0}, "context_dim is 0"),
        ({"context_dim": 6}, "nothing would read the context"),
        ({"middle_depth": 1}, "give context_dim"),
        ({"context_dim": 6, "transformer_depth": (1,)}, "one number a level"),
        ({"context_dim": 6, "transformer_depth": (0, 0, -1)}, "at least 0"),
        ({"context_dim": 6, "transformer_depth": (0, 1, 0)}, "attention and transformer blocks"),
        ({"context_dim": 6, "middle_depth": 1, "middle_attention": False}, "middle_attention"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("size", "config"),
    [
        (28, UNetConfig(1, 1, (48, 96), (1, 1), (1,), head_dim=32, patch=2, resample=Resample.POOL)),
        (32, UNetConfig(3, 3, (32, 64, 128), (1, 1, 1), (2,), head_dim=32, patch=2)),
        (
            32,
            UNetConfig(3, 3, (16, 32, 64, 128), (0, 1, 1, 1), (2, 3), head_dim=32, groups=8, resample=Resample.POOL),
        ),
    ],
)
def test_a_million_parameters_fit_into_a_fifth_of_a_gigaflop(size: int, config: UNetConfig) -> None:
    with torch.device("meta"):
        network = UNet(config)
        assert cost.flops(network, torch.zeros(1, config.in_channels, size, size), torch.zeros(1)) < 0.2e9
        assert cost.parameters(network) > 1e6
