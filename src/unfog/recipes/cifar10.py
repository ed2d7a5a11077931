"""DDPM on CIFAR-10, with classes.

Source:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), section 4 (T = 1000, linear betas, L_simple) and appendix B (network,
    Adam, rate 2e-4, batches of 128, 800,000 steps, dropout 0.1, random flips, EMA 0.9999). The warm-up of 5,000 steps,
    the clipping of the gradient's norm at 1 and the sampling variance beta are those of the published code.

What differs: the network is told the class, and forgets it for a tenth of the examples, so that it can be guided
(Ho, Salimans 2022, arXiv 2207.12598); and the average of the weights has a length relative to the run. A decay of
0.9999 a step is an exponential profile whose standard deviation is 10,000 steps: 0.0125 of 800,000, which is the
length here, equal at the end of the run and shorter before.
"""

from dataclasses import replace

from unfog.diffusion.nn.unet_presets import ddpm_cifar10
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.schedule import linear
from unfog.diffusion.times import Levels
from unfog.diffusion.weighting import Constant
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.gaussian import DDPM, Variance
from unfog.sampling.grid import Trailing
from unfog.sampling.request import SampleSettings
from unfog.training.config import TrainConfig
from unfog.training.optim import OptimizerConfig

BATCH = 128


def recipe() -> Recipe:
    """Return DDPM's network of 35.7 M parameters with its published settings."""
    return Recipe(
        name="cifar10",
        description="32x32 photographs, DDPM as published with classes, for days on a GPU",
        data=DataConfig("cifar10", size=32, channels=3, flip=True),
        network=replace(ddpm_cifar10(), num_classes=10),
        schedule=linear(1000),
        parameterization=Eps(),
        times=Levels(),
        weight=Constant(Eps()),
        train=TrainConfig(
            steps=800_000,
            batch_size=BATCH,
            channels_last=True,
            ema=(0.0125, 0.05),
            optimizer=OptimizerConfig(lr=2e-4, clip=1.0, warmup_examples=5_000 * BATCH),
        ),
        sample=SampleSettings(DDPM(Variance.BETA), Trailing(), steps=1000),
        average=0.0125,
        evaluation=EvaluationConfig(samples=50_000, batch_size=500),
        save=SaveConfig(checkpoint_every=10_000, log_every=100),
    )
