"""Handwritten digits of 8x8 pixels: a first run, without a download, in a minute or two on a processor."""

from unfog.diffusion.nn.unet import UNetConfig
from unfog.diffusion.parameterization import V
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Stratified, Uniform
from unfog.diffusion.weighting import Constant
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.grid import LogSNRUniform
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings
from unfog.training.config import TrainConfig
from unfog.training.optim import Cosine as CosineRate
from unfog.training.optim import OptimizerConfig


def recipe() -> Recipe:
    """Return a U-Net of 0.7 M parameters on scikit-learn's digits: v-prediction on the cosine schedule."""
    return Recipe(
        name="digits",
        description="8x8 digits, class-conditional, in a minute or two on a processor",
        data=DataConfig("digits", size=8, channels=1),
        network=UNetConfig(
            in_channels=1,
            out_channels=1,
            widths=(32, 64),
            blocks=(1, 1),
            attention=(1,),
            head_dim=32,
            num_classes=10,
        ),
        schedule=Cosine(),
        parameterization=V(),
        times=Stratified(Uniform()),
        weight=Constant(),
        train=TrainConfig(
            steps=600,
            batch_size=128,
            channels_last=True,
            optimizer=OptimizerConfig(lr=2e-3, warmup_examples=6_400, decay=CosineRate()),
        ),
        sample=SampleSettings(DPMSolverPP2M(), LogSNRUniform(sigma_min=0.01, sigma_max=100.0), steps=20),
        evaluation=EvaluationConfig(samples=1000),
        save=SaveConfig(checkpoint_every=200, log_every=5),
    )
