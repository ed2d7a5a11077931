"""What published diffusion transformers call their tensors: DiT's own files, and those of diffusers.

Sources of the names:
    the published files DiT-XL-2-256x256.pt and DiT-XL-2-512x512.pt (Peebles, Xie 2023, arXiv 2212.09748), as diffusers'
    ``scripts/convert_dit_to_diffusers.py`` reads them; diffusers' ``DiTTransformer2DModel``.
"""

import torch
from torch import Tensor

from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.nn.positions import positions
from unfog.zoo.keymap import Entry, KeyMap, computed, copies, entry, layer, stacked

ROUNDING = 1e-5
"""How far a table of sines may be from ours: angles up to some 30 radians in float32."""


def dit(config: DiTConfig, side: int) -> KeyMap:
    """Return the key map of a file of DiT.

    Args:
        config: of our network.
        side: of what is diffused, in its own pixels: the file has the table of positions for it, which we compute.
    """
    assert isinstance(config.patch, int)  # DiT's patches are squares
    cells = side // config.patch
    made = [
        Entry((), ("pos_embed",), computed(position_table(cells, config.dim), ROUNDING)),
        *layer("patch_in", "x_embedder.proj"),
        *layer("embedder.time_in", "t_embedder.mlp.0"),
        *layer("embedder.time_out", "t_embedder.mlp.2"),
        entry("embedder.label.weight", "y_embedder.embedding_table.weight"),
        *layer("modulation_out", "final_layer.adaLN_modulation.1"),
        *layer("patch_out", "final_layer.linear"),
    ]
    for i in range(config.depth):
        home = f"blocks.{i}"
        made += layer(f"{home}.modulation", f"{home}.adaLN_modulation.1")
        made += layer(f"{home}.attention.qkv", f"{home}.attn.qkv")
        made += layer(f"{home}.attention.proj", f"{home}.attn.proj")
        made += layer(f"{home}.mlp_in", f"{home}.mlp.fc1")
        made += layer(f"{home}.mlp_out", f"{home}.mlp.fc2")
    return tuple(made)


def diffusers_dit(config: DiTConfig) -> KeyMap:
    """Return the key map of a ``DiTTransformer2DModel``; every block has a copy of the embedding there."""
    blocks = [f"transformer_blocks.{i}" for i in range(config.depth)]

    def embedding(name: str) -> list[str]:
        return [f"{block}.norm1.emb.{name}" for block in blocks]

    repeated = copies(config.depth)
    made = [
        *layer("patch_in", "pos_embed.proj"),
        *layer("embedder.time_in", embedding("timestep_embedder.linear_1"), repeated),
        *layer("embedder.time_out", embedding("timestep_embedder.linear_2"), repeated),
        entry("embedder.label.weight", embedding("class_embedder.embedding_table.weight"), repeated),
        *layer("modulation_out", "proj_out_1"),
        *layer("patch_out", "proj_out_2"),
    ]
    for i, block in enumerate(blocks):
        qkv = [f"{block}.attn1.{name}" for name in ("to_q", "to_k", "to_v")]
        made += layer(f"blocks.{i}.modulation", f"{block}.norm1.linear")
        made += layer(f"blocks.{i}.attention.qkv", qkv, stacked(3))
        made += layer(f"blocks.{i}.attention.proj", f"{block}.attn1.to_out.0")
        made += layer(f"blocks.{i}.mlp_in", f"{block}.ff.net.0.proj")
        made += layer(f"blocks.{i}.mlp_out", f"{block}.ff.net.2")
    return tuple(made)


def position_table(cells: int, dim: int) -> Tensor:
    """Return the table of positions as the file keeps it, (1, cells^2, dim)."""
    return positions((cells, cells), dim, like=torch.empty(0, dtype=torch.float64)).float()[None]
