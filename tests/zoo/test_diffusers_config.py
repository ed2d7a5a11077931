from typing import Any

import pytest
import torch

from unfog.diffusion.nn.dit import extra_large
from unfog.diffusion.parameterization import X0, Eps, V
from unfog.diffusion.schedule import cosine, linear, scaled_linear
from unfog.sampling.gaussian import Variance
from unfog.zoo.diffusers_config import dit_config, scheduling, unet_config
from unfog.zoo.published import named

# config.json of google/ddpm-cat-256, which all of DDPM's have with other widths.
CAT: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": False,
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}


def test_ddpm_is_described_by_its_file() -> None:
    assert unet_config(CAT) == (named("ddpm-lsun-cat256").network, 256)


def test_settings_that_are_left_out_have_diffusers_defaults() -> None:
    from diffusers import DiTTransformer2DModel, UNet2DModel

    with torch.device("meta"):
        unet, dit = UNet2DModel(), DiTTransformer2DModel(num_layers=1)
    assert unet_config({}) == unet_config(unet.config)
    assert dit_config({"num_layers": 1}) == dit_config(dit.config)


def test_dit_is_described_by_its_file() -> None:
    """``config.json`` of facebook/DiT-XL-2-256, which was saved as a class of more settings."""
    given = {
        "_class_name": "Transformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "cross_attention_dim": None,
        "double_self_attention": False,
        "in_channels": 4,
        "norm_type": "ada_norm_zero",
        "num_embeds_ada_norm": 1000,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "use_linear_projection": False,
    }
    assert dit_config(given) == (extra_large(2), 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, 'act_fn="silu", got "gelu"'),
        ({"time_embedding_type": "fourier"}, 'time_embedding_type="positional", got "fourier"'),
        ({"num_class_embeds": 10}, "num_class_embeds=null, got 10"),
        ({"flux_capacitor": 88}, "flux_capacitor=88, which it does not know"),
        ({"down_block_types": ["SkipDownBlock2D"] * 6}, "DownBlock2D and AttnDownBlock2D, got SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D"] * 6}, "attention at the same levels"),
        ({"downsample_padding": 2}, "downsample_padding 0 or 1, got 2"),
        ({"sample_size": [256, 128]}, "a square sample_size"),
    ],
)
def test_a_network_that_is_not_ours_is_refused_by_the_setting(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unet_config({**CAT, **change})


def test_another_transformer_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_type="):
        dit_config({"norm_type": "ada_norm_single"})


@pytest.mark.parametrize(
    ("given", "schedule"),
    [
        ({}, linear()),
        ({"beta_schedule": "squaredcos_cap_v2"}, cosine()),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, scaled_linear()),
    ],
)
def test_schedules_are_those_of_ours_and_of_diffusers(given: dict[str, Any], schedule: Any) -> None:
    from diffusers import DDPMScheduler

    told = scheduling(given)
    assert told.schedule == schedule
    theirs = DDPMScheduler(**given).alphas_cumprod.double()
    ours = torch.tensor(told.schedule.alphas_cumprod, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)  # theirs multiplies a thousand float32 numbers


def test_another_number_of_levels_keeps_the_ends_of_the_betas() -> None:
    betas = scheduling({"num_train_timesteps": 100}).schedule.betas()
    torch.testing.assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))


@pytest.mark.parametrize(("name", "kind"), [("epsilon", Eps()), ("sample", X0()), ("v_prediction", V())])
def test_predictions_are_told(name: str, kind: Any) -> None:
    assert scheduling({"prediction_type": name}).parameterization == kind


def test_variances_and_clipping_are_told() -> None:
    assert scheduling({"variance_type": "fixed_large"}).variance is Variance.BETA
    assert scheduling({"variance_type": None}).variance is Variance.POSTERIOR
    assert scheduling({"variance_type": "learned_range"}).variance is None
    assert scheduling({"clip_sample_range": 2}).clip == 2.0
    assert scheduling({"clip_sample": False}).clip is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prediction_type": "flow"}, "prediction_type among"),
        ({"variance_type": "learned"}, "variance_type among"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule among"),
        ({"trained_betas": [0.1]}, "got trained_betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr false"),
        ({"thresholding": True}, "thresholding false"),
    ],
)
def test_a_schedule_that_is_not_ours_is_refused_by_the_setting(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scheduling(given)
