"""MNIST for a processor without accelerator."""

from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.unet import UNetConfig
from unfog.diffusion.parameterization import V
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Stratified, Uniform
from unfog.diffusion.weighting import Constant
from unfog.recipe.schema import DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings
from unfog.training.config import TrainConfig
from unfog.training.optim import LinearToZero, OptimizerConfig


def recipe() -> Recipe:
    """Return a U-Net that starts at half resolution (patch 2): 1.6 M parameters, 0.19 GFLOP an image."""
    return Recipe(
        name="mnist-small",
        description="28x28 digits, class-conditional, in a quarter of an hour on two processor cores",
        data=DataConfig("mnist", size=28, channels=1),
        network=UNetConfig(
            in_channels=1,
            out_channels=1,
            widths=(48, 96),
            blocks=(1, 1),
            attention=(1,),
            head_dim=32,
            patch=2,
            resample=Resample.POOL,
            num_classes=10,
        ),
        schedule=Cosine(),
        parameterization=V(),
        times=Stratified(Uniform()),
        weight=Constant(),
        train=TrainConfig(
            steps=2_000,
            batch_size=128,
            channels_last=True,
            optimizer=OptimizerConfig(lr=2e-3, warmup_examples=12_800, decay=LinearToZero()),
        ),
        sample=SampleSettings(DPMSolverPP2M(), Trailing(), steps=20),
        evaluation=EvaluationConfig(samples=5_000),
        save=SaveConfig(checkpoint_every=500, log_every=20),
    )
