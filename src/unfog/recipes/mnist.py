"""MNIST at full resolution, for a GPU."""

from unfog.diffusion.nn.unet import UNetConfig
from unfog.diffusion.parameterization import V
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Stratified, Uniform
from unfog.diffusion.weighting import Constant
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.grid import LogSNRUniform
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings
from unfog.training.config import Precision, TrainConfig
from unfog.training.optim import Cosine as CosineRate
from unfog.training.optim import OptimizerConfig


def recipe() -> Recipe:
    """Return a U-Net of 7.3 M parameters with v-prediction on the cosine schedule."""
    return Recipe(
        name="mnist",
        description="28x28 digits, class-conditional, for a GPU",
        data=DataConfig("mnist", size=28, channels=1),
        network=UNetConfig(
            in_channels=1,
            out_channels=1,
            widths=(64, 128, 128),
            blocks=(2, 2, 2),
            attention=(1, 2),
            head_dim=64,
            dropout=0.1,
            num_classes=10,
        ),
        schedule=Cosine(),
        parameterization=V(),
        times=Stratified(Uniform()),
        weight=Constant(),
        train=TrainConfig(
            steps=40_000,
            batch_size=256,
            precision=Precision.BFLOAT16,
            channels_last=True,
            optimizer=OptimizerConfig(lr=1e-3, warmup_examples=256_000, decay=CosineRate()),
        ),
        sample=SampleSettings(DPMSolverPP2M(), LogSNRUniform(), steps=20),
        evaluation=EvaluationConfig(samples=10_000, batch_size=1_000),
        save=SaveConfig(checkpoint_every=2_000, log_every=50),
    )
