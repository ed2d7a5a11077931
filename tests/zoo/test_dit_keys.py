"""DiT is compared with diffusers' module, which differs from the original in two details: the spacing of frequencies
(``downscale_freq_shift=1``), which is set here to its own, and an epsilon, which is set there to ours."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.zoo.peers import Shapes, distance, randomised

from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.nn.embed import Sinusoidal
from unfog.recipe.networks import build_network
from unfog.zoo.keymap import KeyMapError, from_published, to_published
from unfog.zoo.layouts import DIFFUSERS_DIT, DIT
from unfog.zoo.load import expected_shapes
from unfog.zoo.published import named

TINY = DiTConfig(4, 8, 2, dim=16, depth=2, heads=2, num_classes=5)
SIDE = 8


def peer() -> Any:
    from diffusers import DiTTransformer2DModel

    made = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIDE,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    )
    randomised(made)
    first, second = made.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return made


@torch.no_grad()
def test_dit_answers_as_diffusers_module_does() -> None:
    theirs, config = peer(), replace(TINY, time=Sinusoidal(freq_shift=1))
    network = build_network(config).eval()
    keymap = DIFFUSERS_DIT.keymap(config, network.state_dict(), SIDE)
    network.load_state_dict(from_published(keymap, theirs.state_dict(), network.state_dict()))
    x, t, label = torch.randn(2, 4, SIDE, SIDE), torch.tensor([3, 700]), torch.tensor([1, 5])
    expected = theirs(x, timestep=t, class_labels=label).sample
    assert distance(network(x, t.float(), label=label), expected) < 1e-5  # float32


def test_a_file_of_dit_is_diffusers_with_queries_keys_and_values_in_one() -> None:
    state = build_network(TINY).state_dict()
    own = to_published(DIT.keymap(TINY, state, SIDE), state)
    parts = to_published(DIFFUSERS_DIT.keymap(TINY, state, SIDE), state)
    joined = torch.cat([parts[f"transformer_blocks.1.attn1.to_{name}.weight"] for name in "qkv"])
    assert torch.equal(own["blocks.1.attn.qkv.weight"], joined)
    assert torch.equal(
        own["t_embedder.mlp.2.bias"], parts["transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"]
    )
    back = from_published(DIT.keymap(TINY, state, SIDE), own, state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_the_table_of_positions_is_that_of_diffusers_module() -> None:
    state = build_network(TINY).state_dict()
    table = to_published(DIT.keymap(TINY, state, SIDE), state)["pos_embed"]
    torch.testing.assert_close(table, peer().pos_embed.pos_embed, atol=1e-6, rtol=0)  # float32 sines of up to 3 radians


def test_another_table_of_positions_is_refused() -> None:
    state = build_network(TINY).state_dict()
    keymap = DIT.keymap(TINY, state, SIDE)
    found = to_published(keymap, state)
    with pytest.raises(KeyMapError, match="pos_embed: it differs from what is computed here"):
        from_published(keymap, {**found, "pos_embed": found["pos_embed"].flip(1)}, state)


def test_blocks_whose_copies_of_the_embedding_differ_are_refused() -> None:
    state = build_network(TINY).state_dict()
    keymap = DIFFUSERS_DIT.keymap(TINY, state, SIDE)
    found = to_published(keymap, state)
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    found[name] = found[name] + 1
    with pytest.raises(KeyMapError, match=r"embedding_table\.weight: copy 1 differs"):
        from_published(keymap, found, state)


def published_dit_xl(side: int) -> Shapes:
    """Names and shapes of DiT-XL-2-256x256.pt and DiT-XL-2-512x512.pt: 28 blocks of width 1152."""
    d = 1152
    shapes: Shapes = {"pos_embed": (1, (side // 2) ** 2, d), "y_embedder.embedding_table.weight": (1001, d)}
    layers: Shapes = {
        "x_embedder.proj": (d, 4, 2, 2),
        "t_embedder.mlp.0": (d, 256),
        "t_embedder.mlp.2": (d, d),
        "final_layer.linear": (2 * 2 * 8, d),
        "final_layer.adaLN_modulation.1": (2 * d, d),
    }
    block = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    for i in range(28):
        layers |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        layers[f"blocks.{i}.adaLN_modulation.1"] = (6 * d, d)
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


@pytest.mark.parametrize(("name", "side"), [("dit-xl-2-256", 32), ("dit-xl-2-512", 64)])
def test_full_size_files_of_dit_have_these_names_and_shapes(name: str, side: int) -> None:
    assert expected_shapes(named(name), 0) == published_dit_xl(side)


def test_a_full_size_folder_of_diffusers_has_the_names_and_shapes_of_its_module() -> None:
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        state = DiTTransformer2DModel(out_channels=8).state_dict()
    assert expected_shapes(named("dit-xl-2-256"), 1) == {key: tuple(value.shape) for key, value in state.items()}
