"""What there is to measure: pure descriptions with stable names."""

from dataclasses import dataclass
from enum import Enum


class System(Enum):
    """Whose training, network and sampler."""

    UNFOG = "unfog"
    DIFFUSERS = "diffusers"
    DDPM_PYTORCH = "ddpm-pytorch"


@dataclass(frozen=True)
class Effort:
    """How much is spent; smaller than the default only to try the campaign itself.

    Attributes:
        seconds: of training in jobs of equal wall-clock time.
        samples: drawn and scored for each sampler.
        resamples: of each bootstrap.
        check_samples: drawn by each sampler that is compared with the ancestral one.
        family_seconds: of processor time that each family of models is trained for.
        likelihood_examples: test images whose bits per dimension are measured.
        likelihood_draws: times at which the bound is estimated for each of them.
    """

    seconds: float = 480.0
    samples: int = 1000
    resamples: int = 200
    check_samples: int = 250
    family_seconds: float = 300.0
    likelihood_examples: int = 256
    likelihood_draws: int = 32


@dataclass(frozen=True)
class Equal:
    """Training of one system on MNIST for a fixed time, without labels."""

    system: System
    seed: int

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"equal/{self.system.value}/seed-{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return ()

    @property
    def minutes(self) -> float:
        """Expected time."""
        return 8.5


@dataclass(frozen=True)
class Scored:
    """Samples of a network from ``Equal``, drawn by the system's own samplers and compared with the test images."""

    system: System
    seed: int

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"score/{self.system.value}/seed-{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return (Equal(self.system, self.seed).id,)

    @property
    def minutes(self) -> float:
        """Expected time."""
        return {System.UNFOG: 1.0, System.DIFFUSERS: 6.0, System.DDPM_PYTORCH: 6.0}[self.system]


@dataclass(frozen=True)
class Floor:
    """Real training images in the place of samples."""

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return "floor/mnist"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return ()

    @property
    def minutes(self) -> float:
        """Expected time."""
        return 1.0


@dataclass(frozen=True)
class Check:
    """A peer's fast sampler against its ancestral one on the same weights."""

    system: System
    seed: int = 0

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"check/{self.system.value}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return (Equal(self.system, self.seed).id,)

    @property
    def minutes(self) -> float:
        """Expected time."""
        return 80.0


@dataclass(frozen=True)
class Trained:
    """A recipe from start to evaluation."""

    recipe: str
    seed: int

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"recipe/{self.recipe}/seed-{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return ()

    @property
    def minutes(self) -> float:
        """Expected time."""
        return RECIPES[self.recipe]


@dataclass(frozen=True)
class Classifier:
    """A recipe of a classifier of noisy data, from start to its accuracy by noise level."""

    recipe: str
    seed: int

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"classifier/{self.recipe}/seed-{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return ()

    @property
    def minutes(self) -> float:
        """Expected time."""
        return CLASSIFIERS[self.recipe]


class Measure(Enum):
    """How bits per dimension are found."""

    BOUND = "bound"
    ODE = "ode"


@dataclass(frozen=True)
class Bits:
    """Bits per dimension of the test images under a trained recipe: the variational bound, or the ODE's likelihood."""

    recipe: str
    measure: Measure = Measure.BOUND
    seed: int = 0

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"bits/{self.recipe}/{self.measure.value}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return (Trained(self.recipe, self.seed).id,)

    @property
    def minutes(self) -> float:
        """Expected time."""
        return 6.0 if self.measure is Measure.BOUND else 12.0


@dataclass(frozen=True)
class FitSampler:
    """A sampler of few evaluations fitted to a trained recipe, beside the best fixed one."""

    recipe: str
    evaluations: int
    seed: int = 0

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"fit/{self.recipe}/{self.evaluations}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return (Trained(self.recipe, self.seed).id,)

    @property
    def minutes(self) -> float:
        """Expected time."""
        return 8.0


@dataclass(frozen=True)
class FamilyRace:
    """A model of one family of generative models, trained for a fixed processor time and measured."""

    data: str
    family: str
    seed: int

    @property
    def id(self) -> str:
        """Its name, and that of its record."""
        return f"family/{self.data}/{self.family}/seed-{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that come before."""
        return ()

    @property
    def minutes(self) -> float:
        """Expected time."""
        return 9.0


Job = Equal | Scored | Floor | Check | Trained | Classifier | Bits | FitSampler | FamilyRace

SEEDS = (0, 1, 2)
PEERS = (System.DIFFUSERS, System.DDPM_PYTORCH)
RECIPES = {"digits": 2.0, "mnist-small": 30.0, "cifar10-small": 33.0, "shapes-small": 75.0, "flowers128-small": 45.0}
"""Recipes that are trained, and the minutes that this is expected to take on one core."""
CLASSIFIERS = {"mnist-classifier": 6.0}
"""The same of classifiers of noisy data."""
MEASURED_IN_BITS = ("mnist-small", "cifar10-small")
FAMILIES, RACED_ON = ("diffusion", "gan", "vae", "flow"), ("mnist", "cifar10")
FITTED_TO, FITTED_STEPS = ("mnist-small", "cifar10-small"), (4, 6, 8, 10)


def queue() -> tuple[Job, ...]:
    """Return all jobs in the order in which they are run.

    Seed by seed with the systems in turn, so that a machine whose speed drifts meets all of them alike.
    """
    equal: list[Job] = [Floor()]
    for seed in SEEDS:
        equal += [Equal(system, seed) for system in System]
        equal += [Scored(system, seed) for system in System]
    checks = [Check(system) for system in PEERS]
    trained = [Trained(recipe, seed) for seed in SEEDS for recipe in RECIPES]
    classifiers = [Classifier(recipe, seed) for seed in SEEDS for recipe in CLASSIFIERS]
    bits = [Bits(recipe, measure) for recipe in MEASURED_IN_BITS for measure in Measure]
    fits = [FitSampler(recipe, evaluations) for recipe in FITTED_TO for evaluations in FITTED_STEPS]
    races = [FamilyRace(data, family, seed) for seed in SEEDS for data in RACED_ON for family in FAMILIES]
    return (*equal, *checks, *trained, *classifiers, *bits, *fits, *races)
