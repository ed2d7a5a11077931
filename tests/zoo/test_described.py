from pathlib import Path
from typing import Any

import pytest

from unfog.diffusion.schedule import linear
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.gaussian import DDPM, Variance
from unfog.sampling.grid import Linspace
from unfog.sampling.guidance.bounds import Clip
from unfog.sampling.request import SampleSettings
from unfog.zoo.described import described, require_described
from unfog.zoo.published import named
from unfog.zoo.reading import Stored

UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "attention_head_dim": None,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
DDPM_SCHEDULER: dict[str, Any] = {"_class_name": "DDPMScheduler"}
DIT: dict[str, Any] = {"_class_name": "DiTTransformer2DModel", "out_channels": 8}


def stored(
    config: dict[str, Any] | None = UNET, scheduler: dict[str, Any] | None = DDPM_SCHEDULER, **rest: Any
) -> Stored:
    return Stored(Path("folder"), {}, config, scheduler, **rest)


def test_a_unet_is_sampled_as_diffusers_does() -> None:
    model = described(stored(scheduler={"variance_type": "fixed_large", "num_train_timesteps": 1000}))
    assert model.network == named("ddpm-cifar10").network.__class__(
        **{**vars(named("ddpm-cifar10").network), "dropout": 0.0}
    )
    assert model.schedule == linear()
    assert model.sample == SampleSettings(DDPM(Variance.BETA), Linspace(1000), steps=1000, bounds=Clip(1.0))
    assert model.shape == (3, 32, 32)
    assert not model.latent


def test_a_dit_knows_its_null_and_diffuses_codes() -> None:
    model = described(stored(DIT, {"clip_sample": False, "variance_type": "learned_range"}))
    assert model.sample.sampler == LearnedDDPM()
    assert model.sample.bounds is None
    assert model.latent
    recipe = model.recipe("folder")
    assert recipe.condition.classes
    assert recipe.condition.dropout > 0


def test_a_pipeline_with_an_autoencoder_diffuses_codes_whatever_its_channels() -> None:
    assert described(stored(autoencoder=True)).latent


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (stored(None), "a folder of diffusers, got folder"),
        (stored(scheduler=None), r"a scheduler_config\.json"),
        (stored({**UNET, "sample_size": None}), "the side of the pictures as sample_size"),
        (stored({"_class_name": "VQModel"}), "of a UNet2DModel or DiTTransformer2DModel or .*, got 'VQModel'"),
        (stored({**UNET, "act_fn": "gelu"}), r"config\.json: expected a UNet2DModel with act_fn"),
        (stored(scheduler={"beta_schedule": "x"}), r"the scheduler_config\.json of folder: expected beta_schedule"),
    ],
)
def test_a_folder_that_does_not_describe_all_is_refused(given: Stored, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        described(given)


def test_a_folder_that_is_what_it_is_said_to_be_passes() -> None:
    require_described(stored({**UNET, "dropout": 0.3}), named("ddpm-cifar10"), "ddpm-cifar10")
    require_described(stored(DIT, None), named("dit-xl-2-256"), "dit-xl-2-256")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (stored({**UNET, "norm_eps": 1e-5}), "folder is not ddpm-cifar10: norm_eps is 1e-05, not 1e-06"),
        (stored({**UNET, "attention_head_dim": 64}), "head_dim is 64, not None"),
        (stored({**UNET, "sample_size": 64}), "sample_size is 64, not 32"),
        (stored(scheduler={"beta_end": 0.03}), "its scheduler has other noise levels"),
        (stored(scheduler={"prediction_type": "v_prediction"}), "its network predicts V"),
        (stored(DIT), "it is a DiT, not a UNet"),
    ],
)
def test_what_no_shape_tells_is_compared_with_the_folder(given: Stored, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        require_described(given, named("ddpm-cifar10"), "ddpm-cifar10")
