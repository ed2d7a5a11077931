"""What a recipe is: a frozen tree of configuration. Variation is ``dataclasses.replace``.

The values of the tree are the library's own: schedules, parameterizations, samplers and networks' configurations.
``load`` turns trees into YAML and back and applies overrides; ``build`` makes modules of them.
"""

from dataclasses import dataclass, field

from unfog.data.gate import MAX_BAD
from unfog.data.image import colour
from unfog.diffusion.checks import require
from unfog.diffusion.coupling import Coupling, Independent
from unfog.diffusion.curves import Shifted
from unfog.diffusion.learned import Learned
from unfog.diffusion.nn.encoder import EncoderConfig
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.schedule import Schedule
from unfog.diffusion.times import Importance, Stratified, Times, Uniform
from unfog.diffusion.weighting import Constant, Weight
from unfog.recipe.networks import Network
from unfog.sampling.request import SampleSettings
from unfog.tasks.augmentation import NUMBERS, Augmentation
from unfog.tasks.hybrid import FixedVariance, LearnedVariance, ReverseVariance
from unfog.training.config import Parallel, TrainConfig
from unfog.training.ema import Average, average_of


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how they are read.

    Attributes:
        path: a name ("digits", "mnist"), a folder, a file, or "hf:owner/name".
        size: side of the square that pictures are brought to; None keeps them as they are.
        channels: 1 (grey), 3 (colour) or 4 (colour with alpha), of arrays as many as they have; None takes what the
            pictures have, without alpha.
        flip: whether pictures are mirrored at random.
        holdout: share of the examples kept back for tests where the source has no test split, in (0, 1).
        limit: use at most so many examples of each part, each class in proportion; None uses all.
        max_bad: share of the pictures that may be unreadable, in [0, 1]; they are left out and named. More of them
            stop the run before its first step.
        background: the colour on which transparent pixels are composited: a name or "#rrggbb".
        value_range: of arrays that are not uint8, and of pictures of floats: the numbers that mean black and white.
    """

    path: str
    size: int | None = None
    channels: int | None = None
    flip: bool = False
    holdout: float = 0.1
    limit: int | None = None
    max_bad: float = MAX_BAD
    background: str = "white"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require(bool(self.path), "a data path or name, got an empty one")
        require(self.size is None or self.size >= 1, f"a size of at least 1 pixel, got {self.size}")
        require(self.channels is None or self.channels >= 1, f"channels of at least 1, got {self.channels}")
        require(0 < self.holdout < 1, f"a holdout in (0, 1), got {self.holdout}")
        require(self.limit is None or self.limit >= 1, f"a limit of at least 1 example, got {self.limit}")
        require(0 <= self.max_bad <= 1, f"a max_bad in [0, 1], got {self.max_bad}")
        colour(self.background)
        if self.value_range is not None:
            low, high = self.value_range
            require(low < high, f"a value_range of black < white, got {self.value_range}")


@dataclass(frozen=True)
class ConditionConfig:
    """What the model is conditioned on.

    Attributes:
        classes: whether labels are used; the data must have them then.
        attributes: whether attributes are used, such as those of the data ``shapes``; the data must have them then.
        dropout: probability with which the whole condition is replaced by the null; 0 gives a model that cannot be
            guided.
        dropout_each: share of the examples that are told some of their attributes only; of no effect without
            attributes. With 0 the model wants to be told all of them.
    """

    classes: bool = True
    attributes: bool = False
    dropout: float = 0.1
    dropout_each: float = 0.2

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, f"a dropout in [0, 1), got {self.dropout}")
        require(0 <= self.dropout_each < 1, f"a dropout_each in [0, 1), got {self.dropout_each}")


@dataclass(frozen=True)
class SaveConfig:
    """What is written, and when.

    Attributes:
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of the log.
        keep: checkpoints that stay.
        preview_every: steps between pictures of samples in the run folder; None draws none.
        tensorboard: whether the log is also written as TensorBoard event files.
        wandb: project of Weights & Biases that the log is also sent to; None sends nothing.
    """

    checkpoint_every: int = 500
    log_every: int = 10
    keep: int = 2
    preview_every: int | None = None
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "log_every", "keep"):
            require(getattr(self, name) >= 1, f"{name} of at least 1, got {getattr(self, name)}")
        require(
            self.preview_every is None or self.preview_every >= 1,
            f"preview_every of at least 1 step, or None for no previews, got {self.preview_every}",
        )
        require(self.wandb is None or bool(self.wandb), "the name of a project for wandb, or None, got an empty one")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a finished run is measured.

    Attributes:
        samples: how many samples are drawn for the metrics, evenly over the classes.
        guidance: scale of guidance for them.
        seed: of the samples.
        batch_size: samples at a time.
    """

    samples: int = 5000
    guidance: float = 1.0
    seed: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"samples of at least 1, got {self.samples}")
        require(self.batch_size >= 1, f"a batch_size of at least 1, got {self.batch_size}")
        require(0 <= self.seed < 2**63, f"a seed in [0, 2**63), got {self.seed}")


@dataclass(frozen=True)
class Recipe:
    """A run, described completely.

    Attributes:
        name: of the recipe.
        description: one sentence for people.
        data: what is learned from.
        network: its channels and classes are those of the data (``build.fit_to_data`` sets them). An encoder makes the
            run one that learns to name the class of noisy data, to guide another model; how it would be sampled and
            evaluated is of no meaning then.
        schedule: of the noise. One that is learned is trained with the network, and the loss is the variational bound.
        parameterization: what the network predicts.
        times: density of the training times.
        weight: of the loss over noise levels.
        coupling: which noise goes with which example.
        augmentation: what is done to pictures in training while the network, a U-Net, is told of it; null for nothing.
        variance: of the reverse step: chosen by the sampler, or learned, for which the network gets twice the channels.
        energy: whether the network says an energy, the gradient of which is what it predicts.
        condition: what the model is conditioned on.
        train: optimiser steps, batch, precision, averages.
        sample: how to sample unless a request says otherwise.
        average: which average of ``train.ema`` is sampled from, a number being the length of an ``ema.Power``; None
            takes the weights of the last step.
        evaluation: how the run is measured at its end.
        save: what is written, and when.
    """

    name: str
    description: str
    data: DataConfig
    network: Network
    schedule: Schedule
    parameterization: Parameterization
    times: Times
    weight: Weight
    train: TrainConfig
    sample: SampleSettings
    coupling: Coupling = field(default_factory=Independent)
    variance: ReverseVariance = field(default_factory=FixedVariance)
    energy: bool = False
    augmentation: Augmentation | None = None
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    average: float | Average | None = 0.05
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self) -> None:
        self.parameterization.check(self.schedule)
        if isinstance(self.schedule, Learned):
            self._check_learned()
        if isinstance(self.variance, LearnedVariance):
            self._check_variance(self.variance)
        if self.energy:
            self._check_energy()
        self._check_augmentation()
        if isinstance(self.network, EncoderConfig):
            self._check_classifier()
        require(
            not isinstance(self.schedule, Shifted) or not isinstance(self.schedule.schedule, Learned),
            "schedule=learned by itself, which finds its ends: a shifted one would not be learned; leave the shift out",
        )
        require(
            self.average is None or average_of(self.average) in self.train.averages,
            f"an average among those in train.ema, {self.train.ema}, or None, got {self.average}",
        )
        tokens = getattr(self.network, "attribute_tokens", ())
        require(
            self.condition.attributes or not tokens,
            "network.attribute_tokens=[] with condition.attributes=false, which leaves nothing to put in them, "
            f"got {tokens}",
        )
        self._check_guidance()

    def _check_guidance(self) -> None:
        """Refuse scales of guidance that the finished model would refuse, or that would do nothing."""
        conditional = self.condition.classes or self.condition.attributes
        told = "without condition dropout" if conditional else "without classes and attributes"
        remedy = "set condition.dropout=0.1" if conditional else "a model that is told nothing has no guidance"
        for section, guidance in (("sample", self.sample.guidance), ("evaluation", self.evaluation.guidance)):
            require(
                (conditional and self.condition.dropout > 0) or guidance == 1,
                f"{section}.guidance=1 {told}, got {guidance}; {remedy}",
            )

    def _check_classifier(self) -> None:
        """Refuse what would be ignored where a classifier is learned."""
        require(self.condition.classes, "condition.classes=true for a classifier, which learns them, got false")
        require(not self.condition.attributes, "condition.attributes=false for a classifier, got true")
        plain: tuple[tuple[str, object], ...] = (
            ("weight", Constant()),
            ("coupling", Independent()),
            ("variance", FixedVariance()),
            ("energy", False),
            ("augmentation", None),
        )
        for name, usual in plain:
            given = getattr(self, name)
            require(
                given == usual, f"{name} left as it is for a classifier, which minimises cross entropy, got {given}"
            )
        require(
            not isinstance(self.schedule, Learned), "the schedule of the model that a classifier guides, got learned"
        )
        require(not isinstance(self.times, Importance), "times without a history of losses for a classifier")
        require(
            self.save.preview_every is None,
            f"save.preview_every=null for a classifier, which has nothing to show, got {self.save.preview_every}",
        )

    def _check_augmentation(self) -> None:
        """Refuse to change pictures that the network cannot be told of."""
        told = isinstance(self.network, UNetConfig) and self.network.axes == 2
        require(
            self.augmentation is None or told,
            f"augmentation=null for a network that cannot be told of it, unlike a U-Net of pictures; got "
            f"{self.augmentation}",
        )
        numbers = getattr(self.network, "augmentation", 0)
        require(
            numbers == 0 or (self.augmentation is not None and numbers == NUMBERS),
            f"network.augmentation=0, which becomes {NUMBERS} where the recipe has an augmentation, got {numbers}",
        )

    def _check_learned(self) -> None:
        """Refuse what would be ignored, or cannot be, where the schedule is learned with the bound."""
        require(
            self.weight == Constant(),
            f"weight=constant with schedule=learned, whose loss is the variational bound, got {self.weight}",
        )
        require(
            self.times in (Uniform(), Stratified(Uniform())),
            f"times=uniform, or stratified with a uniform density, with schedule=learned: the schedule itself learns "
            f"how often each noise level is drawn; got {self.times}",
        )
        for name, plain in (
            ("coupling", Independent()),
            ("variance", FixedVariance()),
            ("energy", False),
            ("augmentation", None),
        ):
            given = getattr(self, name)
            require(given == plain, f"{name} left as it is with schedule=learned, whose loss is the bound, got {given}")
        require(
            self.train.parallel is Parallel.REPLICATE,
            f"train.parallel=replicate with schedule=learned, got {self.train.parallel.name.lower()}; a schedule is "
            "too small to be sharded, and is needed whole",
        )

    def _check_variance(self, variance: LearnedVariance) -> None:
        variance.check(self.schedule)
        require(
            self.coupling.independent,
            f"coupling=independent with variance=learned, got {self.coupling}; with coupled pairs the variance would "
            "be that of another process",
        )

    def _check_energy(self) -> None:
        require(not self.variance.learned, "variance=fixed with energy=true, got learned: a gradient has no variance")
        require(
            not self.train.compile,
            "train.compile=false with energy=true, got true; what is compiled cannot be differentiated twice",
        )
        require(
            self.train.parallel is Parallel.REPLICATE,
            f"train.parallel=replicate with energy=true, got {self.train.parallel.name.lower()}; sharded weights would "
            "take the gradient inside the network for the step's",
        )
