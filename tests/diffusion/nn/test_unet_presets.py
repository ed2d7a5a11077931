"""Published U-Nets: numbers of parameters, and answers of the original implementations.

The answers were computed once, in double precision, by the modules of openai/guided-diffusion (22e0df8),
openai/improved-diffusion (1bc7bbb) and yang-song/score_sde_pytorch (cb1f359), of a quarter to half of the published
width, with the weights that `fill` gives and a map of names. They form sines of noise levels in float32.
"""

from dataclasses import replace
from math import prod, sqrt

import pytest
import torch
from torch import Tensor

from unfog.diffusion.nn import cost, unet_presets
from unfog.diffusion.nn.embed import Embedder, Sinusoidal
from unfog.diffusion.nn.unet import UNet, UNetConfig
from unfog.diffusion.nn.unet_presets import (
    adm_imagenet64,
    adm_imagenet128,
    adm_imagenet256,
    adm_imagenet512,
    adm_upsampler256,
    adm_upsampler512,
    ddpm256,
    ddpm_cifar10,
    ddpmpp_cifar10,
    edm_ddpmpp_cifar10,
    edm_imagenet64,
    edm_ncsnpp_cifar10,
    iddpm_cifar10,
    iddpm_imagenet64,
    ncsnpp_cifar10,
    stable_diffusion_1,
    stable_diffusion_2,
    stable_diffusion_xl,
)

# Exact numbers, to which the printed ones (in the comments) are rounded. Those of ADM, Improved DDPM, DDPM++ and NCSN++
# are what the original modules count; those of Stable Diffusion are counted in test_unet_context.py. With classes, the
# row of the learned null is not counted: the published tables do not have it.
COUNTS = {
    "ddpm_cifar10": (ddpm_cifar10(), 35_746_307),  # 35.7 million
    "ddpm256": (ddpm256(), 113_673_219),  # 114 million
    "iddpm_cifar10": (iddpm_cifar10(), 52_546_438),  # 50M
    "iddpm_imagenet64": (iddpm_imagenet64(), 121_063_942),  # 100M
    "iddpm_imagenet64 with classes": (iddpm_imagenet64(1000), 273_049_350),  # 270M
    "adm_imagenet64": (adm_imagenet64(1000), 295_904_454),  # 296M
    "adm_imagenet128": (adm_imagenet128(1000), 421_529_606),  # 422M
    "adm_imagenet256": (adm_imagenet256(1000), 553_838_086),  # 554M
    "adm_imagenet256 without classes": (adm_imagenet256(), 552_814_086),
    "adm_imagenet512": (adm_imagenet512(1000), 558_997_638),  # 559M
    "adm_upsampler256": (adm_upsampler256(1000), 311_795_910),  # 312M
    "adm_upsampler512": (adm_upsampler512(1000), 308_835_270),  # 309M
    "ddpmpp_cifar10": (ddpmpp_cifar10(), 61_804_419),
    "ncsnpp_cifar10": (ncsnpp_cifar10(), 62_758_787),
    "edm_ddpmpp_cifar10": (edm_ddpmpp_cifar10(), 55_732_739),  # 55.7 million
    "edm_ncsnpp_cifar10": (edm_ncsnpp_cifar10(), 56_395_523),
    "edm_imagenet64": (edm_imagenet64(1000), 295_899_267),  # 296 million
    "stable_diffusion_1": (stable_diffusion_1(), 859_520_964),
    "stable_diffusion_2": (stable_diffusion_2(), 865_910_724),
    "stable_diffusion_xl": (stable_diffusion_xl(), 2_567_463_684),
}

OPENAI = {"widths": (64, 128), "blocks": (1, 1), "attention": (1,)}
SONG = {"widths": (64, 128, 128), "blocks": (1, 1, 1), "groups": 16, "dropout": 0.0}
CLASSES = {"label": torch.tensor([3, 0])}
LEVELS = torch.tensor([7.0, 421.0])


def wave(*shape: int, phase: float, scale: float = 1.0) -> Tensor:
    """Numbers without chance, so that no generator has to stay what it is."""
    return scale * torch.sin(torch.arange(prod(shape), dtype=torch.float64) * 1.37 + phase).view(shape)


def fill(network: UNet) -> UNet:
    with torch.no_grad():
        for index, (name, parameter) in enumerate(network.named_parameters()):
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(wave(*parameter.shape, phase=index, scale=1.5 / sqrt(fan)))
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.add_(1)
        for bits in network.buffers():
            if bits.dtype == torch.int32:
                bits.copy_(torch.linspace(-20, 20, len(bits)).view(torch.int32))
    return network


@pytest.mark.parametrize(("config", "expected"), COUNTS.values(), ids=COUNTS.keys())
def test_a_published_network_has_the_published_number_of_parameters(config: UNetConfig, expected: int) -> None:
    with torch.device("meta"):
        network = UNet(config)
    null = 0 if network.embedder.label is None else network.embedder.label.embedding_dim
    assert cost.parameters(network) == expected + null


def test_every_preset_is_counted() -> None:
    assert {name.split()[0] for name in COUNTS} == set(unet_presets.__all__)


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_class_of_edms_first_networks_costs_a_row_as_wide_as_the_expanded_noise_level(classes: int) -> None:
    with torch.device("meta"):
        plain, conditional = (cost.parameters(UNet(edm_ddpmpp_cifar10(count))) for count in (None, classes))
    assert conditional - plain == 128 * (classes + 1)


ANSWERS = {
    "ADM": (
        replace(adm_imagenet64(5), **OPENAI, head_dim=32),
        LEVELS,
        CLASSES,
        [-0.086900301, 0.822864485, 0.468655382, 0.0252564267, -0.351256904, 1.17811167, -0.437022096, 0.553852484],
    ),
    "ADM with a number of heads": (
        replace(adm_imagenet128(5), **OPENAI, heads=2),
        LEVELS,
        CLASSES,
        [-0.0868324436, 0.822771357, 0.468797697, 0.0251824667, -0.351240169, 1.17810115, -0.43689714, 0.553824291],
    ),
    "ADM with half the width at first": (
        replace(adm_imagenet512(5), **OPENAI, time_features=128, embed_dim=512),
        LEVELS,
        CLASSES,
        [-0.0684846804, 1.40198253, -0.00953076887, 0.137504438, -0.699492262, 1.34229314, 0.156056132, 0.480141156],
    ),
    "ADM's upsampler": (
        replace(adm_upsampler256(5), **OPENAI),
        LEVELS,
        CLASSES | {"image": torch.nn.functional.interpolate(wave(2, 3, 4, 4, phase=0.9), (8, 8), mode="bilinear")},
        [0.0313614381, 1.23601792, 0.133284086, -0.105969259, -0.741703391, 1.26606885, -0.229329418, 0.126901271],
    ),
    "Improved DDPM": (
        replace(iddpm_cifar10(), **OPENAI),
        LEVELS,
        {},
        [0.250715089, -0.0545227314, -0.631860989, 1.02097265, 0.896884584, -1.09956021, 0.164137276, 0.394428698],
    ),
    "NCSN++": (
        replace(ncsnpp_cifar10(), **SONG, time_features=128, embed_dim=256),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        {},
        [0.89280872, 0.611155263, -0.175413323, -0.789896733, 0.370755804, 0.203955583, -1.11933641, -0.895871135],
    ),
    "DDPM++": (
        replace(ddpmpp_cifar10(), **SONG),
        LEVELS,
        {},
        [-0.246900465, -0.796869664, -0.236655733, 0.278355106, -0.809140507, -0.400508924, 0.391287333, 0.321431153],
    ),
}


@pytest.mark.parametrize(("config", "c_noise", "cond", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_a_small_network_answers_as_the_original(
    config: UNetConfig, c_noise: Tensor, cond: dict[str, Tensor], expected: list[float]
) -> None:
    network = fill(UNet(config).double().eval())
    with torch.no_grad():
        out = network(wave(2, 3, 8, 8, phase=0.3), c_noise, **cond).flatten()
    picked = out[torch.linspace(0, len(out) - 1, 8).long()]
    # The originals' float32 phases of up to 421 leave about 1e-7 in an answer of about 1.
    torch.testing.assert_close(picked, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_an_early_label_is_added_to_the_expanded_noise_level() -> None:
    embedder = Embedder(Sinusoidal(), 8, 16, num_classes=3, label_early=True).double()
    c_noise, label, like = torch.tensor([0.1, 5.0], dtype=torch.float64), torch.tensor([2, 0]), torch.zeros(2).double()
    features = embedder.expand(c_noise) + embedder.label.weight[label]
    silu = torch.nn.functional.silu
    with torch.no_grad():
        expected = silu(embedder.time_out(silu(embedder.time_in(features))))
        torch.testing.assert_close(embedder(c_noise, label=label, vector=None, like=like), expected)
