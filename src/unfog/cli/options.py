"""Options that several commands share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from cyclopts import Parameter

from unfog.cli.errors import CommandError

FLAG = Parameter(negative=())
"""An option that is there or not, without a --no- form."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample; what is not given is as the recipe has it.

    Args:
        steps: steps of the grid of times.
        sampler: ddpm, ddim, euler-ancestral, heun, dpmpp, dpmpp-3m, sde-dpmpp, deis, unipc, restart or any other that
            docs/choosing-a-sampler.md tells of, or a mapping such as '{kind: ddim, eta: 0.5}'; 'fitted' for the one
            that 'unfog fit-sampler' stored for so many steps.
        eta: how much noise ddim and dpmpp inject, from 0 for none to 1 for that of the reverse process.
        grid: trailing, leading, linspace, quadratic, log-snr-uniform, karras, or a mapping with such a kind.
        guidance: scale of classifier-free guidance: null + scale (conditional - null); 1 is none.
        guidance_w: the same in the other published convention, (1 + w) conditional - w null; 0 is none.
        interval: noise levels sigma / alpha, lowest,highest such as 0.2,3, between which there is guidance; 'none' for
            all.
        rescale: how far the spread of guided estimates is brought back to that of conditional ones, from 0 to 1.
        classifier_scale: scale of guidance by a classifier of noisy data, with 'unfog sample --classifier'; 0 is none.
        weak_scale: scale of guidance away from a weaker model, with 'unfog sample --weak'; 1 is none.
        bounds: how estimates are kept within the data's range after guidance: none, clip, dynamic-threshold, or a
            mapping such as '{kind: dynamic_threshold, percentile: 0.99}'.
        average: which weights: 'last' for those of the last step, or an average that the run keeps, as its train.ema
            has it: a length such as 0.05, or '{kind: exponential, decay: 0.9999}'.
    """

    steps: int | None = None
    sampler: str | None = None
    eta: float | None = None
    grid: str | None = None
    guidance: float | None = None
    guidance_w: float | None = None
    interval: str | None = None
    rescale: float | None = None
    classifier_scale: float | None = None
    weak_scale: float | None = None
    bounds: str | None = None
    average: str | None = None


def refuse_sampling(sampling: Sampling, others: Mapping[str, object], why: str) -> None:
    """Refuse what would do nothing where no samples are drawn: all of how to sample but which weights, and others.

    Args:
        sampling: how to sample.
        others: further options that concern samples, None where nothing was given.
        why: they do nothing.

    Raises:
        CommandError: if one was given.
    """
    for name, value in {**asdict(replace(sampling, average=None)), **others}.items():
        if value is not None:
            raise CommandError(f"{why}, so --{name.replace('_', '-')} means nothing to it: leave it out")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sweeping:
    """Which settings to compare, and how much is measured of each; lists have commas between.

    Args:
        samplers: names such as ddim,dpmpp,heun, or mappings such as '{kind: ddim, eta: 0.5}' among them; 'fitted' for
            those that 'unfog fit-sampler' stored.
        grids: names or mappings likewise; the recipe's own unless given.
        steps: numbers of steps.
        guidance: scales of classifier-free guidance; the recipe's own unless given.
        average: which weights, as for 'unfog sample'.
        samples: drawn with each setting for the metrics; 0 measures the distance to the accurate solution alone.
        noises: how many of the samples are compared with the accurate solution; 0 measures the metrics alone.
        seed: of the samples.
        accurate_steps: of the accurate solution, an even number.
        batch_size: samples at a time; it changes speed and memory only.
    """

    samplers: str = "ddim,heun,dpmpp,unipc"
    grids: str | None = None
    steps: str = "5,10,20"
    guidance: str | None = None
    average: str | None = None
    samples: int = 1000
    noises: int = 128
    seed: int = 0
    accurate_steps: int = 200
    batch_size: int = 250


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What runs in the laboratory; lists have commas between.

    Args:
        samplers: names such as ddim,dpmpp,heun, or mappings such as '{kind: ddim, eta: 0.5}' among them.
        steps: numbers of steps.
        data: two-modes, three-modes, ring or scales; or components such as
            '[{mean: [-1, 0], std: [0.2, 0.2]}, {mean: [1, 0], weight: 2}]'.
        schedule: a name such as cosine or rectified-flow, or a mapping.
        grid: trailing, leading, linspace, quadratic, log-snr-uniform, karras, or a mapping with such a kind.
        parameterization: what the network would predict: eps, score, x0, v, flow, edm.
        precision: digits of the network's output: float64, float32, bfloat16 or float16.
        guidance: scale with which sample k is guided towards component k, in turn, and away from the whole mixture;
            without it the mixture is sampled as a whole.
        samples: how many.
        seed: of their noise.
        order_steps: grids on the fixed interval, from which the order is regressed; 'none' measures no order.
        shown: steps of the trajectories and marginals; of --steps the one nearest to 10 unless given.
    """

    samplers: str = "ddim,dpmpp,heun"
    steps: str = "5,10,20,50"
    data: str = "two-modes"
    schedule: str = "cosine"
    grid: str = "trailing"
    parameterization: str = "v"
    precision: str = "float64"
    guidance: float | None = None
    samples: int = 2000
    seed: int = 0
    order_steps: str = "40,80,160,320"
    shown: int | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What pictures are scored against, and in which features.

    Args:
        against: the real pictures: a folder, a file, a known name such as mnist, or 'hf:owner/name'.
        split: of the real pictures; own features are trained on the training split and compared with the test split.
        features: own (a network that is trained on the real pictures), inception (whose Fréchet distance is FID),
            inception-tf (the same with TensorFlow's resize), dinov2, dinov2-base, clip, clip-large.
        count: how many of each set are scored, a random choice; all of them unless given, and of a run as many as its
            recipe evaluates.
        size: side of the square that all pictures are brought to; published features take any.
        channels: 1 for grey, 3 for colour.
        background: the colour on which transparent pixels are composited.
    """

    against: str
    split: str = "train"
    features: str = "own"
    count: int | None = None
    size: int | None = None
    channels: int | None = None
    background: str = "white"
