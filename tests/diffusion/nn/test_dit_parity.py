"""The transformer against diffusers' DiTTransformer2DModel with the same weights, under an explicit map of names."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from unfog.diffusion.nn import cost, dit
from unfog.diffusion.nn.dit import DiT, DiTConfig
from unfog.diffusion.nn.embed import Sinusoidal, sinusoids
from unfog.diffusion.nn.positions import positions

OUTSIDE = {
    "patch_in": ["pos_embed.proj"],
    "modulation_out": ["proj_out_1"],
    "patch_out": ["proj_out_2"],
}
EMBEDDER = {
    "time_in": "timestep_embedder.linear_1",
    "time_out": "timestep_embedder.linear_2",
    "label": "class_embedder.embedding_table",
}
BLOCK = {
    "modulation": ["norm1.linear"],
    "attention.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attention.proj": ["attn1.to_out.0"],
    "mlp_in": ["ff.net.0.proj"],
    "mlp_out": ["ff.net.2"],
}


def pair(dtype: torch.dtype) -> tuple[DiT, DiTTransformer2DModel]:
    torch.manual_seed(0)
    reference = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,  # its default, 1e-5 in the second norm alone, departs from the published network
    )
    config = DiTConfig(
        in_channels=3,
        out_channels=6,
        patch=2,
        dim=16,
        depth=2,
        heads=2,
        num_classes=5,
        time=Sinusoidal(freq_shift=1),  # diffusers departs here from the published network, which has 0
    )
    for parameter in reference.parameters():  # zeros, as published, would hide everything behind the gates
        nn.init.normal_(parameter, std=0.2)
    reference, network = reference.to(dtype).eval(), DiT(config).to(dtype).eval()
    for block in reference.transformer_blocks:  # diffusers keeps one copy of the embedder a block
        block.norm1.emb = reference.transformer_blocks[0].norm1.emb
        block.norm1.emb.time_proj.forward = lambda t: sinusoids(t.to(dtype), 256, config.time)
    table = positions((4, 4), 16, like=torch.zeros((), dtype=dtype))
    # Its table is float32 whatever the dtype: 1e-6 is the rounding of phases up to 3.
    torch.testing.assert_close(reference.pos_embed.pos_embed[0].to(dtype), table, rtol=0, atol=1e-6)
    reference.pos_embed.pos_embed = table[None]
    source = reference.state_dict()
    network.load_state_dict({name: published(name, source) for name in network.state_dict()})
    return network, reference


def published(name: str, source: dict[str, Tensor]) -> Tensor:
    """Take the tensor that `name` has in the reference."""
    module, kind = name.rsplit(".", 1)
    match module.split("."):
        case ["embedder", layer]:
            targets = [f"transformer_blocks.0.norm1.emb.{EMBEDDER[layer]}"]
        case ["blocks", index, *rest]:
            targets = [f"transformer_blocks.{index}.{target}" for target in BLOCK[".".join(rest)]]
        case _:
            targets = OUTSIDE[module]
    return torch.cat([source[f"{target}.{kind}"] for target in targets])


# Relative to the largest output. Float64 leaves no room for a difference in the formula; float32 has rounding of
# about 1e-7 an operation.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_transformer_equals_the_published_implementation(dtype: torch.dtype, tolerance: float) -> None:
    network, reference = pair(dtype)
    x, t, label = torch.randn(2, 3, 8, 8, dtype=dtype), torch.tensor([7, 421]), torch.tensor([1, 5])
    with torch.no_grad():
        expected = reference(x, t, class_labels=label).sample
        actual = network(x, t.float(), label=label)
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_diffusers_counts_one_embedder_a_block() -> None:
    with torch.device("meta"):
        network = DiT(dit.extra_large(2))
        reference = DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            sample_size=32,
            patch_size=2,
        )
    copies = 27 * cost.parameters(network.embedder)
    assert cost.parameters(network) + copies == cost.parameters(reference)
    assert round(cost.parameters(reference) / 1e6, 1) == 749.8
