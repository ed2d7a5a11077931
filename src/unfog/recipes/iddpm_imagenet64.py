"""Improved DDPM on ImageNet at 64x64, without classes.

Source:
    Nichol, Dhariwal 2021 (arXiv 2102.09672): cosine schedule of 4000 levels, L_hybrid; network, rate 1e-4 and batches
    of 128 as in the settings of the authors' README, 1.5 million steps, EMA 0.9999.

The data are to be brought along: a folder ``imagenet64`` of pictures (see docs/guides/data.md).
"""

from dataclasses import replace

from unfog.diffusion.nn.embed import Sinusoidal
from unfog.diffusion.nn.unet_presets import iddpm_imagenet64
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.schedule import cosine
from unfog.diffusion.times import Levels
from unfog.diffusion.weighting import Constant
from unfog.recipe.schema import ConditionConfig, DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.grid import Linspace
from unfog.sampling.request import SampleSettings
from unfog.tasks.hybrid import LearnedVariance
from unfog.training.config import Precision, TrainConfig
from unfog.training.ema import Exponential
from unfog.training.optim import OptimizerConfig

LEVELS = 4000
EMA = Exponential(0.9999)


def recipe() -> Recipe:
    """Return Improved DDPM's network of 121 M parameters with its published settings."""
    return Recipe(
        name="iddpm-imagenet64",
        description="64x64 photographs, Improved DDPM as published, for weeks on a GPU",
        data=DataConfig("imagenet64", size=64, channels=3),
        # The network is told its level on a scale of 1000.
        network=replace(iddpm_imagenet64(), time=Sinusoidal(scale=1000 / LEVELS)),
        schedule=cosine(LEVELS),
        parameterization=Eps(),
        times=Levels(),
        weight=Constant(Eps()),
        variance=LearnedVariance(),
        condition=ConditionConfig(classes=False),
        train=TrainConfig(
            steps=1_500_000,
            batch_size=128,
            precision=Precision.BFLOAT16,
            channels_last=True,
            ema=(EMA, 0.05),
            optimizer=OptimizerConfig(lr=1e-4, clip=None),
        ),
        average=EMA,
        sample=SampleSettings(LearnedDDPM(), Linspace(), steps=250),
        evaluation=EvaluationConfig(samples=50_000, batch_size=250),
        save=SaveConfig(checkpoint_every=10_000, log_every=100),
    )
