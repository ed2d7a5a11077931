"""What another library is asked for: to carry states over some levels of noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x0 ``(B, 2)`` from states divided by alpha ``(B, 2)`` and sigma / alpha ``()``."""


class Peer(ABC):
    """One method of another library.

    Attributes:
        name: of the method there.
        claimed: the order it has by its documentation or paper.
    """

    name: str
    claimed: int

    @abstractmethod
    def evaluations(self, steps: int) -> int | None:
        """Return how often it asks for x0 over some steps; None where it cannot make so many."""

    @abstractmethod
    def solve(self, denoise: Denoise, y: Tensor, levels: Callable[[int], Tensor], steps: int) -> Tensor:
        """Carry states from the first level to the last.

        Args:
            denoise: the exact estimate of x0.
            y: ``(B, 2)`` float64 states divided by alpha.
            levels: ``(n + 1,)`` float64 sigma / alpha, falling, for any number n of steps; the last above 0.
            steps: how many.

        Returns:
            ``(B, 2)`` states divided by alpha at the last level.
        """
