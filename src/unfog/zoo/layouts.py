"""The layouts of published files: how each is recognised, and which key map reads it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.zoo import dit_keys, edm_keys, unet_keys
from unfog.zoo.keymap import KeyMap
from unfog.zoo.unet_keys import BlockNames, HeadOrder

Network = UNetConfig | DiTConfig


@dataclass(frozen=True)
class Layout:
    """One way in which files name the tensors of a kind of network.

    Attributes:
        name: for people.
        marks: names that each file of it has; with all of them it is recognised.
        keymap: from our network's configuration, its ``state_dict`` and the side of what it diffuses to the key map.
    """

    name: str
    marks: tuple[str, ...]
    keymap: Callable[[Network, Mapping[str, Tensor], int], KeyMap]

    def recognises(self, names: Iterable[str]) -> bool:
        """Tell whether a file with tensors of these names is of this layout."""
        return set(self.marks) <= set(names)


def _diffusers_unet(config: Network, network: Mapping[str, Tensor], side: int, names: BlockNames) -> KeyMap:
    assert isinstance(config, UNetConfig)
    return unet_keys.diffusers_unet(config, network, names)


def _pytorch_diffusion(config: Network, network: Mapping[str, Tensor], side: int) -> KeyMap:
    assert isinstance(config, UNetConfig)
    return unet_keys.pytorch_diffusion_unet(config, network)


def _openai(config: Network, network: Mapping[str, Tensor], side: int, order: HeadOrder) -> KeyMap:
    assert isinstance(config, UNetConfig)
    return unet_keys.openai_unet(config, network, order)


def _edm(config: Network, network: Mapping[str, Tensor], side: int) -> KeyMap:
    assert isinstance(config, UNetConfig)
    return edm_keys.edm_unet(config, network, side)


def _dit(config: Network, network: Mapping[str, Tensor], side: int) -> KeyMap:
    assert isinstance(config, DiTConfig)
    return dit_keys.dit(config, side)


def _diffusers_dit(config: Network, network: Mapping[str, Tensor], side: int) -> KeyMap:
    assert isinstance(config, DiTConfig)
    return dit_keys.diffusers_dit(config)


DIFFUSERS_UNET = Layout(
    "a UNet2DModel of diffusers",
    ("time_embedding.linear_1.weight", "mid_block.attentions.0.to_q.weight", "conv_norm_out.weight"),
    partial(_diffusers_unet, names=unet_keys.DIFFUSERS),
)
DIFFUSERS_UNET_OLD = Layout(
    "a UNet2DModel of diffusers before 2023",
    ("time_embedding.linear_1.weight", "mid_block.attentions.0.query.weight", "conv_norm_out.weight"),
    partial(_diffusers_unet, names=unet_keys.DIFFUSERS_OLD),
)
PYTORCH_DIFFUSION = Layout(
    "a DDPM of pytorch_diffusion", ("temb.dense.0.weight", "mid.block_1.norm1.weight"), _pytorch_diffusion
)
_OPENAI = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight")
OPENAI = Layout(
    "a U-Net of guided-diffusion or improved-diffusion", _OPENAI, partial(_openai, order=HeadOrder.HEADS_FIRST)
)
OPENAI_PARTS_FIRST = Layout(OPENAI.name, _OPENAI, partial(_openai, order=HeadOrder.PARTS_FIRST))
EDM = Layout("a network of EDM", ("model.map_layer0.weight", "model.map_layer1.weight"), _edm)
DIT = Layout("a DiT", ("pos_embed", "x_embedder.proj.weight", "final_layer.adaLN_modulation.1.weight"), _dit)
DIFFUSERS_DIT = Layout(
    "a DiTTransformer2DModel of diffusers",
    ("pos_embed.proj.weight", "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight", "proj_out_2.weight"),
    _diffusers_dit,
)

LAYOUTS = (DIFFUSERS_UNET, DIFFUSERS_UNET_OLD, PYTORCH_DIFFUSION, OPENAI, EDM, DIT, DIFFUSERS_DIT)
"""All of them; those that differ in what no name tells are here once."""

_OTHERS = (
    ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "a UNet2DConditionModel of diffusers"),
    ("decoder.conv_in.weight", "an autoencoder"),
    ("text_model.embeddings.token_embedding.weight", "a text encoder"),
    ("label_emb.weight", "a U-Net or classifier of guided-diffusion of another kind"),
    ("input_blocks.0.0.weight", "a U-Net or classifier of guided-diffusion of another kind"),
    ("conv1.weight", "a ResNet"),
)
"""What people have at hand as well, by a name that tells it."""


def kind_of(names: Iterable[str]) -> str:
    """Say what a file with tensors of these names seems to be."""
    known = set(names)
    for layout in LAYOUTS:
        if layout.recognises(known):
            return f"it seems to be {layout.name}"
    for mark, what in _OTHERS:
        if mark in known:
            return f"it seems to be {what}"
    if all(name.startswith("module.") for name in known):
        return "its names begin with 'module.', as DataParallel saves them: take that away, and save it again"
    if any("lora" in name.lower() for name in known):
        return "it seems to be a LoRA, which changes another model"
    first = ", ".join(sorted(known)[:3])
    return f"it is none that Unfog knows; its tensors are {first}{', ...' if len(known) > 3 else ''}"
