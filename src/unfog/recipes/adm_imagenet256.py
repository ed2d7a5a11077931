"""ADM on ImageNet at 256x256, with classes.

Source:
    Dhariwal, Nichol 2021 (arXiv 2105.05233), appendix I: linear schedule of 1000 levels, L_hybrid, rate 1e-4, batches
    of 256, 1.98 million steps, EMA 0.9999, no dropout; network as in the settings of the authors' README.

What differs: the class is forgotten for a tenth of the examples, so that the model can also be guided without a
classifier. The data are to be brought along: a folder ``imagenet`` with a folder for each class.
"""

from unfog.diffusion.nn.unet_presets import adm_imagenet256
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.schedule import linear
from unfog.diffusion.times import Levels
from unfog.diffusion.weighting import Constant
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.grid import Linspace
from unfog.sampling.request import SampleSettings
from unfog.tasks.hybrid import LearnedVariance
from unfog.training.config import Precision, TrainConfig
from unfog.training.ema import Exponential
from unfog.training.optim import OptimizerConfig

EMA = Exponential(0.9999)


def recipe() -> Recipe:
    """Return ADM's network of 554 M parameters with its published settings."""
    return Recipe(
        name="adm-imagenet256",
        description="256x256 photographs, ADM as published, for weeks on many GPUs",
        data=DataConfig("imagenet", size=256, channels=3, flip=True),
        network=adm_imagenet256(num_classes=1000),
        schedule=linear(1000),
        parameterization=Eps(),
        times=Levels(),
        weight=Constant(Eps()),
        variance=LearnedVariance(),
        train=TrainConfig(
            steps=1_980_000,
            batch_size=256,
            precision=Precision.BFLOAT16,
            channels_last=True,
            ema=(EMA, 0.05),
            optimizer=OptimizerConfig(lr=1e-4, clip=None),
        ),
        average=EMA,
        sample=SampleSettings(LearnedDDPM(), Linspace(), steps=250),
        evaluation=EvaluationConfig(samples=50_000, batch_size=50),
        save=SaveConfig(checkpoint_every=10_000, log_every=100),
    )
