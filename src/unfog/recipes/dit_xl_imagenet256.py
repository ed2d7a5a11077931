"""DiT-XL/2 on the latents of ImageNet at 256x256, with classes.

Source:
    Peebles, Xie 2023 (arXiv 2212.09748), section 4: linear schedule of 1000 levels, L_hybrid, AdamW at 1e-4 without
    weight decay or warm-up, batches of 256, EMA 0.9999, 7 million steps, classes forgotten for a tenth of the examples,
    guidance of scale 1.5, 250 steps of DDPM.

The data are to be brought along: NumPy files of latents ``(N, 4, 32, 32)`` with labels, in a folder
``imagenet256-latents`` (see docs/guides/data.md). Published latents come from Stable Diffusion's autoencoder, times
0.18215, of pictures and of their mirror images; brought to 8 bits they lose a little, as nothing else does here.
"""

from unfog.diffusion.nn.dit import extra_large
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
    """Return DiT-XL/2 with its published settings."""
    return Recipe(
        name="dit-xl-imagenet256",
        description="latents of 256x256 photographs, DiT-XL/2 as published, for weeks on many GPUs",
        data=DataConfig("imagenet256-latents", size=32, channels=4),
        network=extra_large(2),
        schedule=linear(1000),
        parameterization=Eps(),
        times=Levels(),
        weight=Constant(Eps()),
        variance=LearnedVariance(eight_bit=False),
        train=TrainConfig(
            steps=7_000_000,
            batch_size=256,
            precision=Precision.BFLOAT16,
            ema=(EMA, 0.05),
            optimizer=OptimizerConfig(lr=1e-4, clip=None),
        ),
        average=EMA,
        sample=SampleSettings(LearnedDDPM(), Linspace(), steps=250, guidance=1.5),
        evaluation=EvaluationConfig(samples=50_000, guidance=1.5, batch_size=50),
        save=SaveConfig(checkpoint_every=10_000, log_every=100),
    )
