"""Options that several commands share."""

from dataclasses import dataclass

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample; what is not given is as the recipe has it.

    Args:
        steps: steps of the grid of times.
        sampler: ddpm, ddpm-beta, ddim, euler, heun, dpmpp, sde-dpmpp, or a mapping such as '{kind: ddim, eta: 0.5}'.
        eta: how much noise ddim and dpmpp inject, from 0 for none to 1 for that of the reverse process.
        grid: trailing, leading, linspace, quadratic, log-snr-uniform, karras, or a mapping with such a kind.
        guidance: scale of classifier-free guidance: null + scale (conditional - null); 1 is none.
        guidance_w: the same in the other published convention, (1 + w) conditional - w null; 0 is none.
        average: which weights: 'last' for those of the last step, or an average that the run keeps, as its train.ema
            has it: a length such as 0.05, or '{kind: exponential, decay: 0.9999}'.
    """

    steps: int | None = None
    sampler: str | None = None
    eta: float | None = None
    grid: str | None = None
    guidance: float | None = None
    guidance_w: float | None = None
    average: str | None = None
