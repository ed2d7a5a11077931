"""What the ``config.json`` of diffusers means here: networks, and the schedules that they were trained on.

Each setting is either taken over or must have the value at which diffusers' module is ours; a setting that is not
known here is refused, for it could change what the network computes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from unfog.diffusion.checks import require
from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.nn.embed import Sinusoidal
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.diffusion.parameterization import X0, Eps, Parameterization, V
from unfog.diffusion.schedule import Tabulated, cosine_betas, linear_betas, scaled_linear_betas
from unfog.sampling.gaussian import Variance

UNET, TRANSFORMER = "UNet2DModel", ("DiTTransformer2DModel", "Transformer2DModel")

_UNET_FIXED: Mapping[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "resnet_time_scale_shift": "default",
    "attn_norm_num_groups": None,
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_UNET_DEFAULTS: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
_DIT_FIXED: Mapping[str, Any] = {
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    # Of the class that DiT was saved as at first; None of them acts on its layers.
    "cross_attention_dim": None,
    "double_self_attention": False,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
    "caption_channels": None,
    "interpolation_scale": None,
    "use_additional_conditions": None,
    "attention_type": "default",
}
_DIT_DEFAULTS: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
    # Neither changes what is computed in float32: there is no group norm, and attention is in float32 anyway.
    "norm_num_groups": 32,
    "upcast_attention": False,
}
_BETAS: Mapping[str, Any] = {
    "linear": lambda steps, start, end: torch.linspace(start, end, steps, dtype=torch.float64),
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": lambda steps, start, end: cosine_betas(steps),
}
_PREDICTIONS: Mapping[str, type[Parameterization]] = {"epsilon": Eps, "sample": X0, "v_prediction": V}
_VARIANCES = {
    "fixed_small": Variance.POSTERIOR,
    "fixed_small_log": Variance.POSTERIOR,
    "fixed_large": Variance.BETA,
    "fixed_large_log": Variance.BETA,
}


def unet_config(given: Mapping[str, Any]) -> tuple[UNetConfig, int | None]:
    """Return the network of a ``UNet2DModel``, and the side of its pictures where the file says it.

    Raises:
        ValueError: if it is one that differs from our U-Net; names the setting.
    """
    told = _settings(given, _UNET_DEFAULTS, _UNET_FIXED, UNET)
    widths, levels = tuple(told["block_out_channels"]), len(told["block_out_channels"])
    attention = _attended(told["down_block_types"], "down_block_types", ("DownBlock2D", "AttnDownBlock2D"))
    above = _attended(told["up_block_types"], "up_block_types", ("UpBlock2D", "AttnUpBlock2D"))
    require(
        sorted(attention) == sorted(levels - 1 - k for k in above),
        f"attention at the same levels down and up, got {told['down_block_types']} and {told['up_block_types']}",
    )
    padding = told["downsample_padding"]
    require(padding in (0, 1), f"downsample_padding 0 or 1, got {padding}")
    config = UNetConfig(
        in_channels=told["in_channels"],
        out_channels=told["out_channels"],
        widths=widths,
        blocks=(told["layers_per_block"],) * levels,
        attention=attention,
        head_dim=told["attention_head_dim"],
        same_padding=padding == 0,
        scale_shift=False,
        groups=told["norm_num_groups"],
        norm_eps=told["norm_eps"],
        dropout=told["dropout"],
        time=Sinusoidal(freq_shift=told["freq_shift"], sin_first=not told["flip_sin_to_cos"]),
        embed_dim=told["time_embedding_dim"],
    )
    return config, _side(told["sample_size"])


def dit_config(given: Mapping[str, Any]) -> tuple[DiTConfig, int | None]:
    """Return the network of a ``DiTTransformer2DModel``, and the side of what it diffuses.

    It has the frequencies that DiT was trained with; diffusers' own module spaces them a little differently.

    Raises:
        ValueError: if it is one that differs from our DiT; names the setting.
    """
    told = _settings(given, _DIT_DEFAULTS, _DIT_FIXED, TRANSFORMER[0])
    channels = told["in_channels"]
    config = DiTConfig(
        in_channels=channels,
        out_channels=channels if told["out_channels"] is None else told["out_channels"],
        patch=told["patch_size"],
        dim=told["num_attention_heads"] * told["attention_head_dim"],
        depth=told["num_layers"],
        heads=told["num_attention_heads"],
        dropout=told["dropout"],
        num_classes=told["num_embeds_ada_norm"],
    )
    return config, _side(told["sample_size"])


@dataclass(frozen=True)
class Scheduling:
    """How a model of diffusers was trained, and is sampled there.

    Attributes:
        schedule: its noise levels.
        parameterization: what the network predicts.
        variance: of the reverse step; None where the network has learned it.
        clip: within which estimates are kept; None leaves them.
    """

    schedule: Tabulated
    parameterization: Parameterization
    variance: Variance | None
    clip: float | None


def scheduling(told: Mapping[str, Any]) -> Scheduling:
    """Return what a ``scheduler_config.json`` says.

    Raises:
        ValueError: if it is something that Unfog has no such schedule for; names the setting.
    """
    prediction, variance = told.get("prediction_type", "epsilon"), told.get("variance_type") or "fixed_small"
    require(prediction in _PREDICTIONS, f"prediction_type among {', '.join(_PREDICTIONS)}, got {prediction!r}")
    known = (*_VARIANCES, "learned_range")
    require(variance in known, f"variance_type among {', '.join(known)}, got {variance!r}")
    require(not told.get("thresholding", False), "thresholding false, got true; give it as bounds when sampling")
    clip = float(told.get("clip_sample_range", 1.0)) if told.get("clip_sample", True) else None
    return Scheduling(_schedule(told), _PREDICTIONS[prediction](), _VARIANCES.get(variance), clip)


def _schedule(told: Mapping[str, Any]) -> Tabulated:
    require(told.get("trained_betas") is None, "a table by its name, got trained_betas")
    require(not told.get("rescale_betas_zero_snr", False), "rescale_betas_zero_snr false, got true")
    name, steps = told.get("beta_schedule", "linear"), told.get("num_train_timesteps", 1000)
    start, end = told.get("beta_start", 0.0001), told.get("beta_end", 0.02)
    require(name in _BETAS, f"beta_schedule among {', '.join(_BETAS)}, got {name!r}")
    if (name, start, end, steps) == ("linear", 0.0001, 0.02, 1000):
        return Tabulated.from_betas(linear_betas(steps))  # the same numbers, so that a recipe can say its name
    return Tabulated.from_betas(_BETAS[name](steps, start, end))


def _settings(
    given: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Return all settings of a module, the defaults being those of diffusers."""
    told = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for name, value in told.items():
        if name.startswith("_"):
            continue
        require(
            name in defaults or name in fixed,
            f"a {what} as Unfog knows it, got the setting {name}={json.dumps(value)}, which it does not know",
        )
        if name in fixed:
            require(
                value == fixed[name],
                f"a {what} with {name}={json.dumps(fixed[name])}, got {json.dumps(value)}, which Unfog has no such "
                "network for",
            )
    return {**defaults, **{name: value for name, value in told.items() if name in defaults}}


def _attended(kinds: tuple[str, ...], what: str, names: tuple[str, str]) -> tuple[int, ...]:
    strange = [kind for kind in kinds if kind not in names]
    require(not strange, f"{what} of {' and '.join(names)}, got {', '.join(strange)}")
    return tuple(i for i, kind in enumerate(kinds) if kind == names[1])


def _side(size: int | tuple[int, int] | None) -> int | None:
    """Return the side of a square, of which a file may tell both."""
    if isinstance(size, tuple):
        require(len(set(size)) == 1, f"a square sample_size, got {size}")
        return int(size[0])
    return size
