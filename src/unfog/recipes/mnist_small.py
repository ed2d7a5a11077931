"""MNIST for a processor without accelerator."""

from unfog.diffusion.nn.unet import UNetConfig
from unfog.diffusion.parameterization import V
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Stratified, Uniform
from unfog.diffusion.weighting import Constant
from unfog.pipeline import SampleSettings
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.gaussian import DPMSolverPP2M
from unfog.sampling.grid import LogSNRUniform
from unfog.training.config import TrainConfig
from unfog.training.optim import Cosine as CosineRate
from unfog.training.optim import OptimizerConfig


def recipe() -> Recipe:
    """Return a U-Net that starts at half resolution (patch 2), 0.16 GFLOP an image."""
    return Recipe(
        name="mnist-small",
        description="28x28 digits, class-conditional, in an hour or so on a processor",
        data=DataConfig("mnist", size=28, channels=1),
        network=UNetConfig(
            in_channels=1,
            out_channels=1,
            widths=(32, 64, 96),
            blocks=(1, 1, 1),
            attention=(1, 2),
            head_dim=32,
            patch=2,
            num_classes=10,
        ),
        schedule=Cosine(),
        parameterization=V(),
        times=Stratified(Uniform()),
        weight=Constant(),
        train=TrainConfig(
            steps=6_000,
            batch_size=128,
            channels_last=True,
            optimizer=OptimizerConfig(lr=1e-3, warmup_examples=25_600, decay=CosineRate()),
        ),
        sample=SampleSettings(DPMSolverPP2M(), LogSNRUniform(sigma_min=0.005, sigma_max=100.0), steps=20),
        evaluation=EvaluationConfig(samples=5_000),
        save=SaveConfig(checkpoint_every=500, log_every=20),
    )
