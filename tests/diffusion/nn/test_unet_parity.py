"""The U-Net against diffusers' UNet2DModel with the same weights, under an explicit map of names."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.embed import Sinusoidal, sinusoids
from unfog.diffusion.nn.unet import UNet, UNetConfig

DDPM = Sinusoidal(freq_shift=1, sin_first=True)
BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "embed": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}


def ddpm_pair(dtype: torch.dtype) -> tuple[UNet, UNet2DModel]:
    """The published configuration of google/ddpm-cifar10-32, a quarter as wide at most."""
    torch.manual_seed(0)
    reference = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        time_embedding_type="positional",
        flip_sin_to_cos=False,
        freq_shift=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=2,
        downsample_padding=0,
        attention_head_dim=None,
        norm_num_groups=8,
        norm_eps=1e-6,
    )
    config = UNetConfig(
        in_channels=3,
        out_channels=3,
        widths=(16, 32, 32, 32),
        blocks=(2, 2, 2, 2),
        attention=(1,),
        same_padding=True,
        scale_shift=False,
        groups=8,
        norm_eps=1e-6,
        time=DDPM,
    )
    return pair(config, reference, dtype)


def adm_pair(dtype: torch.dtype) -> tuple[UNet, UNet2DModel]:
    """Scale-shift norm, residual resampling (in diffusers only with attention), several heads, classes."""
    torch.manual_seed(0)
    reference = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        num_class_embeds=6,
    )
    config = UNetConfig(
        in_channels=3,
        out_channels=6,
        widths=(16, 32),
        blocks=(1, 1),
        attention=(0, 1),
        head_dim=8,
        resample=Resample.RESIDUAL,
        groups=4,
        num_classes=5,
    )
    return pair(config, reference, dtype)


def pair(config: UNetConfig, reference: UNet2DModel, dtype: torch.dtype) -> tuple[UNet, UNet2DModel]:
    for parameter in reference.parameters():  # a fresh norm's ones and zeros would hide an exchange
        nn.init.normal_(parameter, std=0.2)
    network = UNet(config)
    reference, network = reference.to(dtype).eval(), network.to(dtype).eval()
    source = reference.state_dict()
    weights = {name: published(config, name, source) for name in network.state_dict()}
    assert not source, f"left unused: {list(source)}"
    network.load_state_dict(weights)
    if dtype == torch.float64:
        # diffusers forms phases in float32 whatever the dtype; hand it ours to compare everything after them.
        reference.time_proj.forward = lambda t: sinusoids(t.to(dtype), config.features, config.time)
    return network, reference


def published(config: UNetConfig, name: str, source: dict[str, Tensor]) -> Tensor:
    """Take the tensor that `name` has in the reference out of `source`."""
    module, kind = name.rsplit(".", 1)
    targets = [f"{target}.{kind}" for target in counterparts(config, module.split("."))]
    parts = [source.pop(target) for target in targets]
    return torch.cat(parts)


def counterparts(config: UNetConfig, path: list[str]) -> list[str]:
    match path:
        case ["embedder", "time_in"]:
            return ["time_embedding.linear_1"]
        case ["embedder", "time_out"]:
            return ["time_embedding.linear_2"]
        case ["embedder", "label"]:
            return ["class_embedding"]
        case ["conv_in" | "conv_out"]:
            return path
        case ["norm_out"]:
            return ["conv_norm_out"]
        case ["down" | "up" as side, level, "resample", *rest]:
            inner = rest[0] if rest == ["conv"] else BLOCK[rest[0]]
            return [f"{side}_blocks.{level}.{side}samplers.0.{inner}"]
        case ["down" | "up" as side, level, "blocks", index, *rest]:
            return inside_block(f"{side}_blocks.{level}", index, rest)
        case ["middle", index, *rest]:
            return inside_block("mid_block", index, rest)
    raise KeyError(".".join(path))


def inside_block(level: str, index: str, rest: list[str]) -> list[str]:
    match rest:
        case ["attention", "norm"]:
            return [f"{level}.attentions.{index}.group_norm"]
        case ["attention", "qkv"]:
            return [f"{level}.attentions.{index}.to_{letter}" for letter in "qkv"]
        case ["attention", "proj"]:
            return [f"{level}.attentions.{index}.to_out.0"]
    return [f"{level}.resnets.{index}.{BLOCK[rest[0]]}"]


# Relative to the largest output. Float64 leaves no room for a difference in the formula; float32 has rounding of
# about 1e-7 an operation through some fifty layers.
TOLERANCES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


@TOLERANCES
def test_the_ddpm_network_equals_the_published_implementation(dtype: torch.dtype, tolerance: float) -> None:
    network, reference = ddpm_pair(dtype)
    x, t = torch.randn(2, 3, 32, 32, dtype=dtype), torch.tensor([7, 421])
    with torch.no_grad():
        expected = reference(x, t).sample
        actual = network(x, t.float())
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@TOLERANCES
def test_the_adm_network_equals_the_published_implementation(dtype: torch.dtype, tolerance: float) -> None:
    network, reference = adm_pair(dtype)
    x, t, label = torch.randn(2, 3, 16, 16, dtype=dtype), torch.tensor([999, 3]), torch.tensor([4, 5])
    with torch.no_grad():
        expected = reference(x, t, class_labels=label).sample
        actual = network(x, t.float(), label=label)
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_symmetric_padding_is_another_network_than_tensorflows() -> None:
    network, reference = ddpm_pair(torch.float64)
    for level in network.down[:-1]:
        level.resample.same_padding = False
        level.resample.conv.padding = (1, 1)
    x, t = torch.randn(1, 3, 32, 32, dtype=torch.float64), torch.tensor([421])
    with torch.no_grad():
        difference = network(x, t.double()) - reference(x, t).sample
    assert difference.abs().max() > 1e-3
