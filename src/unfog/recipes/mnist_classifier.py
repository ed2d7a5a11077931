"""A classifier of noisy MNIST digits, to guide ``mnist-small`` by."""

from dataclasses import replace

from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.encoder import EncoderConfig
from unfog.recipe.schema import Recipe
from unfog.recipes import mnist_small
from unfog.training.optim import LinearToZero, OptimizerConfig


def recipe() -> Recipe:
    """Return half a U-Net on the noise of ``mnist-small``: 0.4 M parameters."""
    guided = mnist_small.recipe()
    return replace(
        guided,
        name="mnist-classifier",
        description="classes of noisy 28x28 digits, to guide mnist-small, in a few minutes on two processor cores",
        network=EncoderConfig(
            in_channels=1,
            classes=10,
            size=(28, 28),
            widths=(32, 64),
            blocks=(1, 1),
            attention=(1,),
            patch=2,
            resample=Resample.POOL,
        ),
        train=replace(
            guided.train,
            steps=800,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05, warmup_examples=6_400, decay=LinearToZero()),
        ),
    )
