"""Published models by name: what they are, how they were trained, and how their papers sample them.

Each is a whole recipe, so that an imported run says everything that a trained one does. The figures of training are
those of the papers as far as they are given beside each model; imported weights do not depend on them.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239), appendix B: DDPM; the variances are those of its published code, the
    larger for CIFAR-10 and the smaller elsewhere. Nichol, Dhariwal 2021 (2102.09672) and
    github.com/openai/improved-diffusion, README: Improved DDPM. Dhariwal, Nichol 2021 (2105.05233) and
    github.com/openai/guided-diffusion, README: ADM; its steps and batches are those of its appendix I (512x512 looked
    up, the others not verified). Karras et al. 2022 (2206.00364), appendix F: EDM. Peebles, Xie 2023 (2212.09748),
    section 4: DiT.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from unfog.diffusion.nn import dit
from unfog.diffusion.nn.conv import Resample
from unfog.diffusion.nn.embed import Sinusoidal
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.diffusion.nn.unet_presets import (
    adm_imagenet64,
    adm_imagenet128,
    adm_imagenet256,
    adm_imagenet512,
    ddpm256,
    ddpm_cifar10,
    edm_ddpmpp_cifar10,
    edm_imagenet64,
    edm_ncsnpp_cifar10,
    iddpm_cifar10,
    iddpm_imagenet64,
)
from unfog.diffusion.parameterization import EDM, Eps, Parameterization
from unfog.diffusion.schedule import Schedule, Tabulated, VarianceExploding, cosine, linear
from unfog.diffusion.times import Levels, LogNormal, Times
from unfog.diffusion.weighting import Constant, EDMWeight, Weight
from unfog.recipe.errors import RecipeError, did_you_mean
from unfog.recipe.schema import ConditionConfig, DataConfig, Recipe
from unfog.sampling.ancestral import LearnedDDPM
from unfog.sampling.gaussian import DDPM, Heun, Variance
from unfog.sampling.grid import Karras, Leading, Linspace
from unfog.sampling.guidance.bounds import Clip
from unfog.sampling.request import SampleSettings
from unfog.tasks.hybrid import FixedVariance, LearnedVariance
from unfog.training.config import TrainConfig
from unfog.training.optim import OptimizerConfig
from unfog.zoo.layouts import (
    DIFFUSERS_DIT,
    DIFFUSERS_UNET,
    DIFFUSERS_UNET_OLD,
    DIT,
    OPENAI,
    OPENAI_PARTS_FIRST,
    PYTORCH_DIFFUSION,
    Layout,
    Network,
)
from unfog.zoo.layouts import EDM as EDM_LAYOUT

_DDPM_LAYOUTS = (DIFFUSERS_UNET, DIFFUSERS_UNET_OLD, PYTORCH_DIFFUSION)
_IMAGENET = 1000


@dataclass(frozen=True)
class Training:
    """How a model was trained, as far as it is told.

    Attributes:
        steps: of the optimiser.
        batch_size: examples a step.
        lr: learning rate.
    """

    steps: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        description: one line for people, with the name of its file where it has one.
        data: name of what it learned from.
        network: its configuration.
        schedule: of its noise.
        side: of what is diffused, in its own pixels.
        training: how it was trained; None where that is not told.
        layouts: of the files that there are of it.
        sample: how its paper samples.
        parameterization: what the network predicts.
        times: density of its training times.
        weight: of its loss.
        dropout: probability of the null class in training; 0 for a model that cannot be guided without a classifier.
        latent: whether codes of pictures are diffused.
    """

    description: str
    data: str
    network: Network
    schedule: Schedule
    side: int
    training: Training | None
    layouts: tuple[Layout, ...]
    sample: SampleSettings
    parameterization: Parameterization = field(default_factory=Eps)
    times: Times = field(default_factory=Levels)
    weight: Weight = field(default_factory=Constant)
    dropout: float = 0.0
    latent: bool = False

    @property
    def learned_variance(self) -> bool:
        """Whether the network says the variance of the reverse step, too."""
        return self.network.out_channels == 2 * self.network.in_channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one example of what is diffused."""
        return self.network.in_channels, self.side, self.side

    def recipe(self, name: str) -> Recipe:
        """Return the model as a recipe; where its training is not told, that is one step on one example."""
        training = self.training or Training(1, 1, 1e-4)
        classes = self.network.num_classes is not None
        return Recipe(
            name=name,
            description=self.description,
            data=DataConfig(self.data) if self.latent else DataConfig(self.data, self.side, self.network.in_channels),
            network=self.network,
            schedule=self.schedule,
            parameterization=self.parameterization,
            times=self.times,
            weight=self.weight,
            train=TrainConfig(training.steps, training.batch_size, ema=(), optimizer=OptimizerConfig(lr=training.lr)),
            sample=self.sample,
            variance=LearnedVariance(eight_bit=not self.latent) if self.learned_variance else FixedVariance(),
            condition=ConditionConfig(classes=classes, dropout=self.dropout if classes else 0.0),
            average=None,
        )


def _ddpm256(data: str, steps: int, what: str) -> Published:
    return Published(
        f"DDPM, {what} at 256x256, unconditional",
        data,
        ddpm256(),
        linear(),
        256,
        Training(steps, 64, 2e-5),
        _DDPM_LAYOUTS,
        SampleSettings(DDPM(), Leading(), steps=1000, bounds=Clip()),
    )


def _adm(what: str, network: UNetConfig, side: int, training: Training, data: str = "imagenet") -> Published:
    return Published(
        f"ADM, {what}",
        data,
        network,
        linear(),
        side,
        training,
        (OPENAI,),
        SampleSettings(LearnedDDPM(), Linspace(), steps=250, bounds=Clip()),
    )


def _adm_lsun(what: str, steps: int) -> Published:
    network, training = replace(adm_imagenet256(), dropout=0.1), Training(steps, 256, 1e-4)
    model = _adm(f"LSUN {what} at 256x256, unconditional (lsun_{what}.pt)", network, 256, training, f"lsun-{what}")
    return replace(model, sample=replace(model.sample, steps=1000))  # where its README finds the best samples


def _adm_imagenet64() -> Published:
    """Its schedule is the cosine, and its attention has another order than ADM's other networks."""
    what = "ImageNet at 64x64, by class (64x64_diffusion.pt)"
    model = _adm(what, adm_imagenet64(_IMAGENET), 64, Training(540_000, 2048, 3e-4))
    return replace(model, schedule=cosine(), layouts=(OPENAI_PARTS_FIRST,))


def _iddpm(
    what: str,
    network: UNetConfig,
    side: int,
    training: Training,
    data: str,
    *,
    schedule: Tabulated,
    rescaled: bool = False,
) -> Published:
    """Return one of Improved DDPM.

    Args:
        what: it is.
        network: its configuration.
        side: of its pictures.
        training: how it was trained.
        data: name of what it learned from.
        schedule: of its noise.
        rescaled: whether the network is told levels as if there were 1000.
    """
    levels = schedule.levels
    time = Sinusoidal(scale=1000 / levels if rescaled else 1.0)
    return Published(
        f"Improved DDPM, {what}",
        data,
        replace(network, time=time),
        schedule,
        side,
        training,
        (OPENAI,),
        SampleSettings(LearnedDDPM(), Linspace(levels), steps=250, bounds=Clip()),
    )


def _iddpm_lsun(lr: float, steps: int, batch_size: int, file: str) -> Published:
    network = replace(
        adm_imagenet256(),
        widths=(128, 128, 256, 256, 512, 512),
        attention=(4,),
        head_dim=None,
        resample=Resample.CONV,
        scale_shift=False,
    )
    what = f"LSUN bedrooms at 256x256, unconditional ({file})"
    return _iddpm(what, network, 256, Training(steps, batch_size, lr), "lsun-bedroom", schedule=linear())


def _edm(what: str, network: UNetConfig, file: str) -> Published:
    """Return one of EDM's networks, sampled deterministically by Heun's method."""
    imagenet = network.scale_shift
    steps, training = (40, Training(610_352, 4096, 1e-4)) if imagenet else (18, Training(390_625, 512, 1e-3))
    return Published(
        f"EDM, {what} ({file})",
        "imagenet" if imagenet else "cifar10",
        network,
        VarianceExploding(),
        64 if imagenet else 32,
        training,
        (EDM_LAYOUT,),
        SampleSettings(Heun(), Karras(), steps=steps),
        parameterization=EDM(),
        times=LogNormal(),
        weight=EDMWeight(),
    )


def _dit_xl(side: int, steps: int) -> Published:
    pixels = f"{8 * side}x{8 * side}"
    return Published(
        f"DiT-XL/2, ImageNet at {pixels}, by class, in latents (DiT-XL-2-{pixels}.pt)",
        "imagenet",
        dit.extra_large(2),
        linear(),
        side,
        Training(steps, 256, 1e-4),
        (DIT, DIFFUSERS_DIT),
        SampleSettings(LearnedDDPM(), Linspace(), steps=250, guidance=1.5),
        dropout=0.1,
        latent=True,
    )


MODELS: Mapping[str, Callable[[], Published]] = {
    "ddpm-cifar10": lambda: Published(
        "DDPM, CIFAR-10 at 32x32, unconditional (google/ddpm-cifar10-32)",
        "cifar10",
        ddpm_cifar10(),
        linear(),
        32,
        Training(800_000, 128, 2e-4),
        _DDPM_LAYOUTS,
        SampleSettings(DDPM(Variance.BETA), Leading(), steps=1000, bounds=Clip()),
    ),
    "ddpm-celebahq256": lambda: _ddpm256("celebahq", 500_000, "CelebA-HQ (google/ddpm-celebahq-256)"),
    "ddpm-lsun-bedroom256": lambda: _ddpm256("lsun-bedroom", 2_400_000, "LSUN bedrooms (google/ddpm-bedroom-256)"),
    "ddpm-lsun-cat256": lambda: _ddpm256("lsun-cat", 1_800_000, "LSUN cats (google/ddpm-cat-256)"),
    "ddpm-lsun-church256": lambda: _ddpm256("lsun-church", 1_200_000, "LSUN churches (google/ddpm-church-256)"),
    "iddpm-cifar10": lambda: _iddpm(
        "CIFAR-10 at 32x32, unconditional (cifar10_uncond_50M_500K.pt)",
        iddpm_cifar10(),
        32,
        Training(500_000, 128, 1e-4),
        "cifar10",
        schedule=cosine(4000),
        rescaled=True,
    ),
    "iddpm-imagenet64": lambda: _iddpm(
        "ImageNet at 64x64, unconditional (imagenet64_uncond_100M_1500K.pt)",
        iddpm_imagenet64(),
        64,
        Training(1_500_000, 128, 1e-4),
        "imagenet",
        schedule=cosine(4000),
        rescaled=True,
    ),
    "iddpm-imagenet64-cond": lambda: _iddpm(
        "ImageNet at 64x64, by class (imagenet64_cond_270M_250K.pt)",
        iddpm_imagenet64(_IMAGENET),
        64,
        Training(250_000, 2048, 3e-4),
        "imagenet",
        schedule=cosine(4000),
    ),
    "iddpm-lsun-bedroom256": lambda: _iddpm_lsun(1e-4, 1_200_000, 128, "lsun_uncond_100M_1200K_bs128.pt"),
    "iddpm-lsun-bedroom256-2400k": lambda: _iddpm_lsun(2e-5, 2_400_000, 64, "lsun_uncond_100M_2400K_bs64.pt"),
    "adm-imagenet64": _adm_imagenet64,
    "adm-imagenet128": lambda: _adm(
        "ImageNet at 128x128, by class (128x128_diffusion.pt)",
        adm_imagenet128(_IMAGENET),
        128,
        Training(4_360_000, 256, 1e-4),
    ),
    "adm-imagenet256": lambda: _adm(
        "ImageNet at 256x256, by class (256x256_diffusion.pt)",
        adm_imagenet256(_IMAGENET),
        256,
        Training(1_980_000, 256, 1e-4),
    ),
    "adm-imagenet256-uncond": lambda: _adm(
        "ImageNet at 256x256, unconditional (256x256_diffusion_uncond.pt)",
        adm_imagenet256(),
        256,
        Training(1_980_000, 256, 1e-4),
    ),
    "adm-imagenet512": lambda: _adm(
        "ImageNet at 512x512, by class (512x512_diffusion.pt)",
        adm_imagenet512(_IMAGENET),
        512,
        Training(1_940_000, 256, 1e-4),
    ),
    "adm-lsun-bedroom256": lambda: _adm_lsun("bedroom", 750_000),
    "adm-lsun-cat256": lambda: _adm_lsun("cat", 200_000),
    "adm-lsun-horse256": lambda: _adm_lsun("horse", 250_000),
    "edm-cifar10-vp": lambda: _edm(
        "CIFAR-10 at 32x32, DDPM++, unconditional", edm_ddpmpp_cifar10(), "edm-cifar10-32x32-uncond-vp.pkl"
    ),
    "edm-cifar10-ve": lambda: _edm(
        "CIFAR-10 at 32x32, NCSN++, unconditional", edm_ncsnpp_cifar10(), "edm-cifar10-32x32-uncond-ve.pkl"
    ),
    "edm-cifar10-cond-vp": lambda: _edm(
        "CIFAR-10 at 32x32, DDPM++, by class", edm_ddpmpp_cifar10(10), "edm-cifar10-32x32-cond-vp.pkl"
    ),
    "edm-cifar10-cond-ve": lambda: _edm(
        "CIFAR-10 at 32x32, NCSN++, by class", edm_ncsnpp_cifar10(10), "edm-cifar10-32x32-cond-ve.pkl"
    ),
    "edm-imagenet64-cond": lambda: _edm(
        "ImageNet at 64x64, ADM, by class", edm_imagenet64(_IMAGENET), "edm-imagenet-64x64-cond-adm.pkl"
    ),
    "dit-xl-2-256": lambda: _dit_xl(32, 7_000_000),
    "dit-xl-2-512": lambda: _dit_xl(64, 3_000_000),
}
"""All of them, by name."""


def named(name: str) -> Published:
    """Return the published model of a name.

    Raises:
        RecipeError: if there is none; names the nearest one.
    """
    if name not in MODELS:
        raise RecipeError(
            "", f"there is no published model {name!r}: 'unfog import --list' shows them{did_you_mean(name, MODELS)}"
        )
    return MODELS[name]()
