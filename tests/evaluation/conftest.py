import numpy as np
import pytest
import torch
from torch import nn

from unfog.data.dataset import ArrayDataset
from unfog.data.shapes.dataset import ShapesDataset
from unfog.data.shapes.options import ShapesOptions
from unfog.data.shapes.scene import ATTRIBUTES
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Uniform
from unfog.diffusion.weighting import Constant
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import FeatureConfig
from unfog.evaluation.measure import Effort, measure
from unfog.pipeline import Pipeline
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Attributes, Label, Unconditional
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.request import SampleSettings
from unfog.tasks.denoising import Denoising

BUDGET = Budget(steps=6, batch_size=12, width=1, lr=2e-2)


class PixelNetwork(nn.Module):
    """Looks at one pixel at a time, so an example's answer does not depend on its batch by even a rounding error."""

    def __init__(self, classes):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.4))
        self.register_buffer("shift", torch.linspace(-0.3, 0.3, classes + 1))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, c_noise, label=None):
        shift = 0.0 if label is None else self.shift[label][:, None, None, None]
        return self.dropout(torch.tanh(self.slope * x - shift))


def make_dataset(count, seed, channels=1, labelled=True):
    """Two classes of 8x8 images, one bright on the left and one on the right, with noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    pixels = rng.integers(0, 100, (count, channels, 8, 8), dtype=np.uint8)
    pixels[label == 0, :, :, :4] += 120
    pixels[label == 1, :, :, 4:] += 120
    if not labelled:
        return ArrayDataset(pixels, name="toy <unlabelled>")
    return ArrayDataset(pixels, label, name="toy", classes=("left & top", "right"))


def make_pipeline(channels=1, classes=2, dropout=0.1, schedule=None, parameterization=None, settings=None):
    """Return a pipeline of a model that was not trained, and its task."""
    conditioner = Label(classes, dropout) if classes else Unconditional()
    process = Gaussian(schedule or Cosine())
    denoiser = NetworkDenoiser(PixelNetwork(classes), process, parameterization or V())
    names = ("left & top", "right") if classes else ()
    settings = settings or SampleSettings(DDIM(), Trailing(), steps=3)
    pipeline = Pipeline(denoiser, conditioner, Identity(), (channels, 8, 8), settings, names)
    return pipeline, Denoising(denoiser, conditioner, Uniform(), Constant())


class ToldNetwork(nn.Module):
    """Looks at one pixel at a time and shifts it by the first attribute, the last number being the null."""

    def __init__(self, values):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.4))
        self.register_buffer("shift", torch.linspace(-0.3, 0.3, values + 1))

    def forward(self, x, c_noise, attributes):
        return torch.tanh(self.slope * x - self.shift[attributes[:, 0]][:, None, None, None])


@pytest.fixture(scope="session")
def shapes():
    """Training and test part of a small set of captioned shapes."""
    options = ShapesOptions((1, 2), train=40, test=10)
    return tuple(ShapesDataset(options, part, 32) for part in ("train", "test"))


@pytest.fixture(scope="session")
def told_pipeline():
    """A pipeline of a model that is told the attributes of shapes, at guidance 2, and its task."""
    conditioner = Attributes([len(attribute.values) for attribute in ATTRIBUTES])
    denoiser = NetworkDenoiser(ToldNetwork(conditioner.sizes[0]), Gaussian(Cosine()), V())
    settings = SampleSettings(DDIM(), Trailing(), steps=2, guidance=2.0)
    pipeline = Pipeline(denoiser, conditioner, Identity(), (3, 32, 32), settings, attributes=ATTRIBUTES)
    return pipeline, Denoising(denoiser, conditioner, Uniform(), Constant())


@pytest.fixture(scope="session")
def toy_dataset():
    return make_dataset


@pytest.fixture(scope="session")
def toy_pipeline():
    return make_pipeline


@pytest.fixture(scope="session")
def effort():
    return Effort(FeatureConfig(budget=BUDGET), BUDGET, resamples=20, loss_examples=16)


@pytest.fixture(scope="session")
def measured(effort, tmp_path_factory):
    """Pipeline, task, both sets, and what was measured at guidance 2."""
    pipeline, task = make_pipeline()
    train, test = make_dataset(60, 0), make_dataset(30, 1)
    cache = tmp_path_factory.mktemp("cache")
    found = measure(
        pipeline, task, train, test, samples=25, guidance=2.0, seed=3, batch_size=10, cache=cache, effort=effort
    )
    return pipeline, task, train, test, found
