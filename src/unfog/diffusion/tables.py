"""More tables of betas, and what can be done to a table; DDPM's own stand beside ``schedule.Tabulated``.

Sources:
    Ho, Jain, Abbeel 2020 (arXiv 2006.11239): the ends 1e-4 and 0.02; their published code has the quadratic betas. Xu
    et al. 2022 (2203.02923), GeoDiff: the sigmoid betas, as in its published settings. Lin, Liu, Li, Yang 2024
    (2305.08891), algorithm 1: zero terminal SNR.
"""

import torch
from torch import Tensor

from unfog.diffusion.checks import require
from unfog.diffusion.schedule import Tabulated, scaled_linear_betas


def quadratic_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas whose square root is linear, between DDPM's ends. ``(steps,)`` float64."""
    return scaled_linear_betas(steps, start, end)


def sigmoid_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas that rise along the logistic function from -6 to 6, between DDPM's ends. ``(steps,)`` float64."""
    require(steps >= 2 and 0 < start < end < 1, f"steps >= 2 and 0 < start < end < 1, not {steps}, {start}, {end}")
    return torch.sigmoid(torch.linspace(-6.0, 6.0, steps, dtype=torch.float64)) * (end - start) + start


def zero_terminal(table: Tabulated) -> Tabulated:
    """Return a table whose last level is pure noise and whose first is unchanged.

    The square roots of alpha_bar are shifted so that the last becomes 0, and stretched so that the first stays. A model
    then has to predict V, X0, Flow or EDM: ``Eps`` says nothing at the last level, and is refused.

    Args:
        table: any; its clean end is kept.

    Source:
        Lin et al. 2024 (arXiv 2305.08891), algorithm 1.
    """
    root = torch.tensor(table.alphas_cumprod, dtype=torch.float64).sqrt()
    square = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    # The first level to the bit, whatever the division rounds.
    return Tabulated((table.alphas_cumprod[0], *square[1:].tolist()), table.clean)
