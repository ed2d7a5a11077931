"""Coloured shapes with attributes, for a processor without accelerator."""

from unfog.data.shapes.scene import ATTRIBUTES, SLOT_COLUMNS, SLOTS
from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.parameterization import V
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import LogitNormal, Stratified
from unfog.diffusion.weighting import Constant
from unfog.recipe.schema import ConditionConfig, DataConfig, EvaluationConfig, Recipe, SaveConfig
from unfog.sampling.grid import Trailing
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.sampling.request import SampleSettings
from unfog.training.config import TrainConfig
from unfog.training.optim import LinearToZero, OptimizerConfig


def recipe() -> Recipe:
    """Return a small diffusion transformer that is told colours, shapes, sizes, places, number and relation."""
    return Recipe(
        name="shapes-small",
        description="32x32 scenes of coloured shapes, told by attributes, in an hour and a quarter on one core",
        data=DataConfig("shapes", size=32, channels=3),
        network=DiTConfig(
            in_channels=3,
            out_channels=3,
            patch=4,
            dim=128,
            depth=8,
            heads=4,
            attributes=tuple(len(attribute.values) for attribute in ATTRIBUTES),
            # Number, ground and relation have a token each, and each described object has one.
            attribute_tokens=(0, 1, *(2 + slot for slot in range(SLOTS) for _ in SLOT_COLUMNS[slot]), 2 + SLOTS),
        ),
        schedule=Cosine(),
        parameterization=V(),
        # What was asked for matters where little of the picture is seen: more of the times are noisy ones.
        times=Stratified(LogitNormal(mean=0.8, std=1.0)),
        weight=Constant(),
        condition=ConditionConfig(classes=False, attributes=True),
        train=TrainConfig(
            steps=20_000,
            batch_size=16,
            optimizer=OptimizerConfig(lr=1e-3, warmup_examples=3_200, decay=LinearToZero()),
        ),
        sample=SampleSettings(DPMSolverPP2M(), Trailing(), steps=20, guidance=2.0),
        evaluation=EvaluationConfig(samples=2_000, guidance=2.0),
        save=SaveConfig(checkpoint_every=1_000, log_every=100),
    )
