"""EDM's networks are compared with a restatement of what they compute, written from the paper and from the names and
shapes of their tensors; no code of its authors was read or run."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.zoo.peers import Shapes, distance
from torch import Tensor, nn

from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.recipe.networks import build_network
from unfog.zoo.keymap import KeyMapError, from_published, to_published
from unfog.zoo.layouts import EDM
from unfog.zoo.load import expected_shapes
from unfog.zoo.published import named

SIDE = 16
TINY = {"widths": (64, 64), "blocks": (1, 1), "attention": (1,), "num_classes": 4}
SMALL = {"stem_width": 32, "groups": 16, "time_features": 32, "embed_dim": 64}
VP = replace(named("edm-cifar10-cond-vp").network, **TINY, **SMALL)
VE = replace(named("edm-cifar10-cond-ve").network, **TINY, **SMALL)
ADM = replace(named("edm-imagenet64-cond").network, **TINY, head_dim=32, groups=16)
CONFIGS = {"vp": VP, "ve": VE, "adm": ADM}


class Original:
    """What the published networks compute with a ``state_dict``, for two levels with one block each."""

    def __init__(self, state: Mapping[str, Tensor], config: UNetConfig) -> None:
        self.state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        self.song = not config.scale_shift  # DDPM++ and NCSN++, not ADM
        self.eps = 1e-6 if self.song else 1e-5
        self.heads = 1 if self.song else 2
        self.gain = 0.5**0.5 if self.song else 1.0

    def __call__(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        emb = self.embedding(c_noise, label)
        skips = [self.conv("enc.16x16_conv", x)]
        skips.append(self.block("enc.16x16_block0", skips[-1], emb))
        down = self.block("enc.8x8_down", skips[-1], emb, scale=0.5)
        if self.has("enc.8x8_aux_residual"):
            wide = F.conv2d(
                x, self.state["enc.8x8_aux_residual.weight"], self.state["enc.8x8_aux_residual.bias"], padding=2
            )
            down = (down + self.filtered("enc.8x8_aux_residual", wide, 0.5, padding=0)) * self.gain
        skips.append(down)
        skips.append(self.block("enc.8x8_block0", skips[-1], emb))
        h = self.block("dec.8x8_in1", self.block("dec.8x8_in0", skips[-1], emb), emb)
        for side in (8, 16):
            if side == 16:
                h = self.block("dec.16x16_up", h, emb, scale=2.0)
            for i in range(2):
                h = self.block(f"dec.{side}x{side}_block{i}", torch.cat([h, skips.pop()], 1), emb)
        norm, conv = ("dec.16x16_aux_norm", "dec.16x16_aux_conv") if self.song else ("out_norm", "out_conv")
        return self.conv(conv, F.silu(self.norm(norm, h)))

    def embedding(self, c_noise: Tensor, label: Tensor) -> Tensor:
        one_hot = F.one_hot(label, 4).float()
        width = self.state["map_layer0.weight"].shape[1]
        if "map_noise.freqs" in self.state:
            phase = c_noise[:, None] * 2 * torch.pi * self.state["map_noise.freqs"]
        else:
            steps = torch.arange(width // 2) / (width // 2 - (1 if self.song else 0))
            phase = c_noise[:, None] * 1e-4**steps
        parts = (phase.sin(), phase.cos()) if self.song else (phase.cos(), phase.sin())
        emb = torch.cat(parts, 1)
        if self.song:
            emb = emb + self.linear("map_label", one_hot * 2.0)  # sqrt(4)
        emb = self.linear("map_layer1", F.silu(self.linear("map_layer0", emb)))
        if not self.song:
            emb = emb + one_hot @ self.state["map_label.weight"].T
        return F.silu(emb)

    def block(self, name: str, x: Tensor, emb: Tensor, scale: float = 1.0) -> Tensor:
        h = self.filtered(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)), scale)
        h = self.conv(f"{name}.conv0", h)
        affine = self.linear(f"{name}.affine", emb)[:, :, None, None]
        if self.song:
            h = self.norm(f"{name}.norm1", h + affine)
        else:
            gain, shift = affine.chunk(2, 1)
            h = self.norm(f"{name}.norm1", h) * (1 + gain) + shift
        h = self.conv(f"{name}.conv1", F.silu(h))
        x = self.filtered(f"{name}.skip", x, scale)
        h = (h + (self.conv(f"{name}.skip", x) if self.has(f"{name}.skip") else x)) * self.gain
        if not self.has(f"{name}.qkv"):
            return h
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", h))
        # (B, heads, features, queries keys values, pixels)
        q, k, v = qkv.reshape(len(h), self.heads, h.shape[1] // self.heads, 3, -1).unbind(3)
        weight = torch.softmax(q.transpose(2, 3) @ k / q.shape[2] ** 0.5, dim=-1)
        mixed = self.conv(f"{name}.proj", (v @ weight.transpose(2, 3)).reshape(h.shape))
        return (mixed + h) * self.gain

    def filtered(self, name: str, x: Tensor, scale: float, padding: int | None = None) -> Tensor:
        if scale == 1.0:
            return x
        taps = self.state[f"{name}.resample_filter"].tile(x.shape[1], 1, 1, 1)
        padding = (taps.shape[-1] - 1) // 2 if padding is None else padding
        if scale == 0.5:
            return F.conv2d(x, taps, groups=x.shape[1], stride=2, padding=padding)
        return F.conv_transpose2d(x, 4 * taps, groups=x.shape[1], stride=2, padding=padding)

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 16, self.state[f"{name}.weight"], self.state[f"{name}.bias"], self.eps)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def a_file(config: UNetConfig) -> dict[str, Tensor]:
    """Random tensors under EDM's names, with the filters that they must have."""
    state = build_network(config).state_dict()
    made = to_published(EDM.keymap(config, state, SIDE), state)
    return {
        name: tensor if name.endswith("filter") else 0.2 * torch.randn(tensor.shape) for name, tensor in made.items()
    }


def loaded(config: UNetConfig, found: Mapping[str, Tensor]) -> nn.Module:
    network = build_network(config).eval()
    state = network.state_dict()
    network.load_state_dict(from_published(EDM.keymap(config, state, SIDE), found, state))
    return network


@torch.no_grad()
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_networks_of_edm_answer_as_described(kind: str) -> None:
    config = CONFIGS[kind]
    found, x = a_file(config), torch.randn(2, 3, SIDE, SIDE)
    c_noise, label = torch.tensor([-1.5, 1.0]), torch.tensor([3, 1])
    theirs = Original(found, config)(x, c_noise, label)
    # Frequencies of a few turns enlarge the rounding of float32.
    assert distance(loaded(config, found)(x, c_noise, label=label), theirs) < 1e-5


def test_another_filter_is_refused() -> None:
    name = "model.enc.8x8_down.conv0.resample_filter"
    with pytest.raises(KeyMapError, match=r"conv0\.resample_filter: it differs"):
        loaded(VE, {**a_file(VE), name: torch.ones(1, 1, 4, 4) / 16})


def test_the_input_for_augmentation_is_left_out_and_told() -> None:
    state = build_network(VP).state_dict()
    told = {name: item.unused for item in EDM.keymap(VP, state, SIDE) if item.unused for name in item.theirs}
    assert list(told) == ["model.map_augment.weight"]
    assert "augmentation" in told["model.map_augment.weight"]


def published_cifar10(ncsn: bool, classes: bool) -> Shapes:
    """Names and shapes of edm-cifar10-32x32-*-{vp,ve}.pkl: three levels of width 256 with four blocks."""
    wide, embed, taps = (256, 512, 4) if ncsn else (128, 512, 2)
    single: Shapes = {"map_augment.weight": (wide, 9)}
    layers: Shapes = {"map_layer0": (embed, wide), "map_layer1": (embed, embed), "enc.32x32_conv": (128, 3, 3, 3)}
    if ncsn:
        single["map_noise.freqs"] = (128,)
    if classes:
        layers["map_label"] = (wide, 10)

    def block(name: str, channels: int, *, attention: bool = False, resized: bool = False) -> None:
        layers.update(
            {f"{name}.norm0": (channels,), f"{name}.conv0": (256, channels, 3, 3), f"{name}.affine": (256, 512)}
        )
        layers.update({f"{name}.norm1": (256,), f"{name}.conv1": (256, 256, 3, 3)})
        if channels != 256 or resized:
            layers[f"{name}.skip"] = (256, channels, 1, 1)
        if attention:
            layers.update({f"{name}.norm2": (256,), f"{name}.qkv": (768, 256, 1, 1), f"{name}.proj": (256, 256, 1, 1)})
        if resized:
            single.update({f"{name}.{part}.resample_filter": (1, 1, taps, taps) for part in ("conv0", "skip")})

    entering = {32: 3, 16: 256}
    for side in (32, 16, 8):
        if side < 32:
            block(f"enc.{side}x{side}_down", 256, resized=True)
        if side < 32 and ncsn:
            layers[f"enc.{side}x{side}_aux_residual"] = (256, entering[2 * side], 3, 3)
            single[f"enc.{side}x{side}_aux_residual.resample_filter"] = (1, 1, taps, taps)
        for i in range(4):
            block(f"enc.{side}x{side}_block{i}", 128 if side == 32 and i == 0 else 256, attention=side == 16)
    block("dec.8x8_in0", 256, attention=True)
    block("dec.8x8_in1", 256)
    for side in (8, 16, 32):
        if side > 8:
            block(f"dec.{side}x{side}_up", 256, resized=True)
        for i in range(5):
            first = side == 32 and i == 4  # takes in the first convolution
            block(f"dec.{side}x{side}_block{i}", 384 if first else 512, attention=side == 16 and i == 4)
    layers |= {"dec.32x32_aux_norm": (256,), "dec.32x32_aux_conv": (3, 256, 3, 3)}
    for name, shape in layers.items():
        single |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"model.{name}": shape for name, shape in single.items()}


@pytest.mark.parametrize("kind", ["vp", "ve"])
@pytest.mark.parametrize("classes", [False, True])
def test_full_size_files_for_cifar10_have_these_names_and_shapes(kind: str, classes: bool) -> None:
    model = named(f"edm-cifar10-{'cond-' if classes else ''}{kind}")
    assert expected_shapes(model) == published_cifar10(kind == "ve", classes)


def test_the_full_size_file_for_imagenet_is_adm_s_under_other_names(published_shapes: Mapping[str, Shapes]) -> None:
    """Same layers with 3 channels out; classes as columns; filters beside; matrices of attention as convolutions."""
    ours, adm = expected_shapes(named("edm-imagenet64-cond")), published_shapes["adm-imagenet64"]

    def plain(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
        return sorted(
            shape[:2] if len(shape) > 2 and shape[-1] == 1 else tuple(3 if n == 6 else n for n in shape)
            for name, shape in shapes.items()
            if "filter" not in name and "label" not in name
        )

    assert plain(ours) == plain(adm)
    assert ours["model.map_label.weight"] == (768, 1000)
    assert sum("filter" in name for name in ours) == 2 * 2 * 3  # three steps down and up, two layers each
