"""Figure of docs/mathematics/bound.md: the integrand of the bound where the best denoiser is known."""

import math
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.figures.detail import Detail, Lines, span
from unfog.diffusion.analytic import Analytic, mixture
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Schedule, VarianceExploding
from unfog.evaluation.pictures import COLOURS, dress, panels, save

REACH = 14.0
"""Log-SNRs from minus to plus this are integrated over."""


def sources(schedule: Schedule) -> dict[str, Analytic]:
    """Return exact denoisers of data on a line, each of variance 1."""
    process = Gaussian(schedule)

    def of(means: list[float], variance: float, weights: list[float] | None = None) -> Analytic:
        weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        return mixture(process, torch.tensor(means, dtype=torch.float64)[:, None], variance, weight)

    ends = [-math.sqrt(4 / 3), math.sqrt(4 / 3), 0.0]
    return {
        "two points": of([-1.0, 1.0], 0.0),
        "three points": of(ends, 0.0, [0.375, 0.375, 0.25]),
        "a Gaussian": of([0.0], 1.0),
        "two bumps": of([-math.sqrt(0.99), math.sqrt(0.99)], 0.01),
    }


def least_error(denoiser: Analytic, log_snr: Tensor, points: int) -> Tensor:
    """Return the squared error of the best estimate of x0 at log-SNRs ``(N,)``, by quadrature over x_t."""
    schedule = denoiser.process.schedule
    second = float(denoiser.data_variance.sum()) + float(denoiser.data_mean.square().sum())
    around = span(-9.0, 9.0, points)
    errors = []
    for t in schedule.time(log_snr).unbind():
        alpha, sigma = schedule.scales(t)
        widths = (alpha**2 * denoiser.variances + sigma**2).sqrt()
        # Around each component of the noisy data as many deviations as hold all of its mass.
        x = (alpha * denoiser.means + widths * around).flatten().sort().values
        density = denoiser.log_density(x[:, None], t).exp()
        guess = denoiser(x[:, None], t).x0[:, 0]
        errors.append(second - float(torch.trapezoid(density * guess.square(), x)))
    return torch.tensor(errors, dtype=torch.float64).clamp_min(0.0)


def draw(folder: Path, detail: Detail) -> Lines:
    """Draw the figure, and tell the areas."""
    log_snr = span(-REACH, REACH, max(40, detail.points // 2))
    figure, ((left, right),) = panels(1, 2, panel=(4.6, 3.4))
    dress(left, "log-SNR λ", "best squared error of x0", log_y=True)
    dress(right, "log-SNR λ", "nats per unit of λ", title="½ SNR × best error")
    lines = ["| data on a line | area, nats | closed form |", "|---|---|---|"]
    for (name, denoiser), colour in zip(sources(VarianceExploding(4000.0)).items(), COLOURS, strict=False):
        error = least_error(denoiser, log_snr, 4 * detail.points)
        rate = 0.5 * log_snr.exp() * error
        left.plot(log_snr.numpy(), error.numpy(), color=colour, linewidth=1.6, label=name)
        right.plot(log_snr.numpy(), rate.numpy(), color=colour, linewidth=1.6)
        lines.append(f"| {name} | {float(torch.trapezoid(rate, log_snr)):.4f} | {_known(name)} |")
    left.set_ylim(1e-6, 3)
    right.set_ylim(0, 0.56)
    left.legend(frameon=False, fontsize=8, labelcolor="linecolor", handlelength=1.2, loc="lower left")
    save(figure, folder / "information.png")
    return lines


def _known(name: str) -> str:
    """Return the area in closed form, where there is one."""
    if name == "two points":
        return f"log 2 = {math.log(2):.4f}, their entropy"
    if name == "three points":
        entropy = -(2 * 0.375 * math.log(0.375) + 0.25 * math.log(0.25))
        return f"{entropy:.4f}, their entropy"
    if name == "a Gaussian":
        return f"½ log(1 + SNR) at the last SNR = {0.5 * math.log1p(math.exp(REACH)):.4f}"
    return "–"
