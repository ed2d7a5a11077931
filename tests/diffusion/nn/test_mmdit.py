"""The joint transformer against diffusers' SD3Transformer2DModel with the same weights, under a map of names."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from unfog.diffusion.nn import cost, mmdit
from unfog.diffusion.nn.embed import sinusoids
from unfog.diffusion.nn.mmdit import JointBlock, MMDiT, MMDiTConfig
from unfog.diffusion.nn.positions import Sines, positions

STREAMS = {
    "x": {
        "modulation": ["norm1.linear"],
        "attention.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
        "attention.proj": ["attn.to_out.0"],
        "attention.norm.q": ["attn.norm_q"],
        "attention.norm.k": ["attn.norm_k"],
        "mlp_in": ["ff.net.0.proj"],
        "mlp_out": ["ff.net.2"],
    },
    "context": {
        "modulation": ["norm1_context.linear"],
        "attention.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
        "attention.proj": ["attn.to_add_out"],
        "attention.norm.q": ["attn.norm_added_q"],
        "attention.norm.k": ["attn.norm_added_k"],
        "mlp_in": ["ff_context.net.0.proj"],
        "mlp_out": ["ff_context.net.2"],
    },
}
OUTSIDE = {
    "patch_in": "pos_embed.proj",
    "embedder.time_in": "time_text_embed.timestep_embedder.linear_1",
    "embedder.time_out": "time_text_embed.timestep_embedder.linear_2",
    "embedder.vector_in": "time_text_embed.text_embedder.linear_1",
    "embedder.vector_out": "time_text_embed.text_embedder.linear_2",
    "context_in": "context_embedder",
    "modulation_out": "norm_out.linear",
    "patch_out": "proj_out",
}
TINY = MMDiTConfig(
    in_channels=3,
    out_channels=4,
    patch=2,
    dim=16,
    depth=2,
    heads=2,
    context_dim=6,
    vector_dim=5,
    positions=Sines(step=0.5, window=8),
)


def published(name: str, source: dict[str, Tensor]) -> Tensor:
    """Take the tensor that `name` has in the reference."""
    module, kind = name.rsplit(".", 1)
    match module.split("."):
        case ["blocks", index, stream, *rest]:
            targets = [f"transformer_blocks.{index}.{target}" for target in STREAMS[stream][".".join(rest)]]
        case _:
            targets = [OUTSIDE[module]]
    value = torch.cat([source[f"{target}.{kind}"] for target in targets])
    if module in ("modulation_out", "blocks.1.context.modulation"):  # there the scale comes before the shift
        value = value.roll(len(value) // 2, dims=0)
    return value


def pair(dtype: torch.dtype, *, qk_norm: bool) -> tuple[MMDiT, SD3Transformer2DModel]:
    torch.manual_seed(0)
    reference = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=3,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=5,
        pos_embed_max_size=8,
        qk_norm="rms_norm" if qk_norm else None,
    )
    config = MMDiTConfig(**{**vars(TINY), "qk_norm": qk_norm})
    for parameter in reference.parameters():  # zeros would hide everything behind the gates
        nn.init.normal_(parameter, std=0.2)
    reference, network = reference.to(dtype).eval(), MMDiT(config).to(dtype).eval()
    # Its phases are float32 whatever the dtype; ours replace them once they are seen to be the same.
    like = torch.zeros((), dtype=dtype)
    table = positions((8, 8), 16, step=0.5, like=like)
    torch.testing.assert_close(reference.pos_embed.pos_embed[0].to(dtype), table, rtol=0, atol=1e-6)
    reference.pos_embed.pos_embed = table[None]
    reference.time_text_embed.time_proj.forward = lambda t: sinusoids(t.to(dtype), 256, config.time)
    source = reference.state_dict()
    network.load_state_dict({name: published(name, source) for name in network.state_dict()})
    return network, reference


# Relative to the largest output. Float64 leaves no room for a difference in the formula; float32 has rounding of
# about 1e-7 an operation, and diffusers' norm of queries and keys sums in float32 whatever the dtype.
@pytest.mark.parametrize(
    ("dtype", "qk_norm", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.float32, True, 1e-5),
        (torch.float64, False, 1e-10),
        (torch.float64, True, 1e-7),
    ],
)
def test_the_transformer_equals_the_published_implementation(
    dtype: torch.dtype, qk_norm: bool, tolerance: float
) -> None:
    network, reference = pair(dtype, qk_norm=qk_norm)
    x, t = torch.randn(2, 3, 8, 12, dtype=dtype), torch.tensor([7, 421])
    context, vector = torch.randn(2, 5, 6, dtype=dtype), torch.randn(2, 5, dtype=dtype)
    with torch.no_grad():
        expected = reference(x, context, vector, t).sample
        actual = network(x, t.float(), context=context, vector=vector)
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("preset", "layers", "heads", "qk_norm"),
    [(mmdit.sd3_medium, 24, 24, None), (mmdit.sd3_5_large, 38, 38, "rms_norm")],
)
def test_presets_have_the_parameters_of_the_published_networks(
    preset: Any, layers: int, heads: int, qk_norm: str | None
) -> None:
    with torch.device("meta"):
        reference = SD3Transformer2DModel(
            sample_size=128,
            num_layers=layers,
            num_attention_heads=heads,
            joint_attention_dim=4096,
            caption_projection_dim=64 * heads,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
            qk_norm=qk_norm,
        )
        network = MMDiT(preset())
    assert cost.parameters(network) == cost.parameters(reference)
    source = reference.state_dict()
    for name, ours in network.state_dict().items():
        assert published(name, source).shape == ours.shape, name


def test_medium_has_two_billion_parameters() -> None:
    with torch.device("meta"):
        assert round(cost.parameters(MMDiT(mmdit.sd3_medium())) / 1e9, 2) == 2.03


def test_a_fresh_block_is_the_identity_of_both_streams() -> None:
    x, context, embedding = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 16)
    block = JointBlock(TINY, last=False)
    assert torch.equal(block(x, embedding, context, None, None), torch.cat([x, context], dim=1))


def test_the_order_of_the_tokens_of_a_condition_is_not_seen() -> None:
    torch.manual_seed(0)
    network = MMDiT(TINY).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, context, vector = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5, 6).double(), torch.randn(2, 5).double()
    level = torch.tensor(3.0)
    with torch.no_grad():
        forward = network(x, level, context=context, vector=vector)
        # Only the order of sums differs.
        torch.testing.assert_close(network(x, level, context=context.flip(1), vector=vector), forward)
