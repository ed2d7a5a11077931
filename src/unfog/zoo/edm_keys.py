"""What EDM's published networks call their tensors.

DDPM++ and NCSN++ for CIFAR-10 share one layout with ADM for ImageNet at 64x64: blocks are named for their resolution,
on the way down ``enc``, on the way up ``dec``, whose first two are those in the middle. The layers that resample keep
their filter as a buffer, which is a constant.

Sources:
    Karras et al. 2022 (arXiv 2206.00364), appendix F; the names, and the order of queries, keys and values, are facts
    about the published files and were not verified against one: no code of its authors was read.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from unfog.diffusion.nn.embed import Fourier
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.tasks.augmentation import NUMBERS
from unfog.zoo.keymap import (
    Entry,
    Form,
    KeyMap,
    as_bits,
    computed,
    entry,
    halves_swapped,
    innermost,
    layer,
    left_out,
    one_hot_layer,
    pointwise,
    without_null,
)
from unfog.zoo.unet_keys import BlockNames, attention, down_sites, has_attention, residual, up_sites

_NAMES = BlockNames(
    {
        "norm1": "norm0",
        "conv1": "conv0",
        "embed": "affine",
        "norm2": "norm1",
        "conv2": "conv1",
        "skip": "skip",
    },
    "norm2",
    ("qkv",),
    "proj",
)


def edm_unet(config: UNetConfig, network: Mapping[str, Tensor], side: int) -> KeyMap:
    """Return the key map of one of EDM's networks, as ``network.state_dict()`` of the published object has it.

    Args:
        config: of our network.
        network: its ``state_dict``.
        side: of its pictures.
    """
    levels = len(config.widths)
    names = [f"{side >> i}x{side >> i}" for i in range(levels)]
    made = [
        *_embedding(config),
        *layer("conv_in", f"model.enc.{names[0]}_conv"),
        *_block("middle.0", f"model.dec.{names[-1]}_in0", network),
        *_block("middle.1", f"model.dec.{names[-1]}_in1", network),
    ]
    for side_name, sites in (("enc", down_sites(config)), ("dec", up_sites(config))):
        for site in (site for level in sites for site in level):
            made += _block(site.ours, f"model.{side_name}.{names[site.level]}_block{site.number}", network)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if config.smooth else [1.0, 1.0])
    for i in range(levels - 1):
        steps = ((f"down.{i}", f"model.enc.{names[i + 1]}_down"), (f"up.{i}", f"model.dec.{names[levels - 2 - i]}_up"))
        for ours, theirs in steps:
            made += _block(f"{ours}.resample", theirs, network)
            made += _filters([f"{theirs}.conv0", f"{theirs}.skip"], taps)
        if config.input_pyramid:
            made += layer(f"down.{i}.pyramid.conv", f"model.enc.{names[i + 1]}_aux_residual")
            made += _filters([f"model.enc.{names[i + 1]}_aux_residual"], taps)
    out = (
        ("model.out_norm", "model.out_conv")
        if config.scale_shift
        else tuple(f"model.dec.{names[0]}_aux_{part}" for part in ("norm", "conv"))
    )
    return (*made, *layer("norm_out", out[0]), *layer("conv_out", out[1]))


def _embedding(config: UNetConfig) -> Iterator[Entry]:
    """Yield the entries of the embedding; sines come first there, also of ``Fourier``, of which ours are second."""
    fourier = isinstance(config.time, Fourier)
    if fourier:
        yield entry("embedder.frequency_bits", "model.map_noise.freqs", as_bits())
    yield entry("embedder.time_in.weight", "model.map_layer0.weight", halves_swapped(1) if fourier else None)
    yield entry("embedder.time_in.bias", "model.map_layer0.bias")
    yield from layer("embedder.time_out", "model.map_layer1")
    if config.num_classes is not None:
        yield _classes(early=config.label_early, swapped=fourier)
    if not config.scale_shift:
        why = "tells of augmentation, which there is none of when sampling"
        yield Entry((), ("model.map_augment.weight",), left_out((config.features, NUMBERS)), why)


def _classes(*, early: bool, swapped: bool) -> Entry:
    ours = "embedder.label.weight"
    if not early:
        return entry(ours, "model.map_label.weight", without_null(turned=True))
    return entry(ours, ["model.map_label.weight", "model.map_label.bias"], one_hot_layer(scaled=True, swapped=swapped))


def _block(ours: str, theirs: str, network: Mapping[str, Tensor]) -> Iterator[Entry]:
    yield from residual(ours, theirs, _NAMES, network)
    if has_attention(ours, network):
        yield from attention(ours, theirs, _NAMES, innermost(2), pointwise(2))


def _filters(layers: Sequence[str], taps: Tensor) -> Iterator[Entry]:
    """Yield the entries of the filters of layers that resample: the product of both axes, of sum 1."""
    value = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    form: Form = computed(value, tolerance=1e-6)
    for name in layers:
        yield Entry((), (f"{name}.resample_filter",), form, "")
