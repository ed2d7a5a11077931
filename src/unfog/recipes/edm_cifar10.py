"""EDM on CIFAR-10, with classes: the DDPM++ network.

Source:
    Karras et al. 2022 (arXiv 2206.00364), table 1 (preconditioning, weight, times, sampler: Heun, 18 steps, 35
    evaluations) and appendix F (Adam, rate 1e-3 after a warm-up of 10 million images, batches of 512, 200 million
    images, EMA with a half-life of 0.5 million images, dropout 0.13).

What differs: the class is forgotten for a tenth of the examples, so that the model can be guided; and augmented
pictures are resampled otherwise, see ``tasks.augmentation``. Mirroring is part of the augmentation, of which the model
is told.
"""

from dataclasses import replace

from unfog.diffusion.nn.unet_presets import edm_ddpmpp_cifar10
from unfog.diffusion.parameterization import EDM
from unfog.diffusion.schedule import VarianceExploding
from unfog.diffusion.times import LogNormal
from unfog.diffusion.weighting import EDMWeight
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.gaussian import Heun
from unfog.sampling.grid import Karras
from unfog.sampling.request import SampleSettings
from unfog.tasks.augmentation import NUMBERS, Augmentation
from unfog.training.config import TrainConfig
from unfog.training.ema import Exponential
from unfog.training.optim import OptimizerConfig

BATCH, IMAGES = 512, 200_000_000
EMA = Exponential(0.5 ** (BATCH / 500_000))


def recipe() -> Recipe:
    """Return EDM's network of 55.7 M parameters with its published settings."""
    return Recipe(
        name="edm-cifar10",
        description="32x32 photographs, EDM nearly as published, for days on some GPUs",
        data=DataConfig("cifar10", size=32, channels=3),
        network=replace(edm_ddpmpp_cifar10(num_classes=10), augmentation=NUMBERS),
        schedule=VarianceExploding(80.0),
        parameterization=EDM(),
        times=LogNormal(),
        weight=EDMWeight(),
        augmentation=Augmentation(probability=0.12),
        train=TrainConfig(
            steps=IMAGES // BATCH,
            batch_size=BATCH,
            channels_last=True,
            ema=(EMA, 0.05),
            optimizer=OptimizerConfig(lr=1e-3, clip=None, warmup_examples=10_000_000),
        ),
        average=EMA,
        sample=SampleSettings(Heun(), Karras(), steps=18),
        evaluation=EvaluationConfig(samples=50_000, batch_size=500),
        save=SaveConfig(checkpoint_every=5_000, log_every=100),
    )
