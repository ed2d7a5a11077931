"""Checks of arguments at constructors and public entries."""

import torch
from torch import Tensor


def require(condition: bool, expected: str) -> None:
    """Raise ``ValueError("expected ...")`` unless the condition holds."""
    if not condition:
        raise ValueError(f"expected {expected}")


def require_precise(t: Tensor) -> None:
    """Raise ``TypeError`` unless times are float32 or float64: in 16 bits 1000 levels collapse to about 500."""
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected times of float32 or float64, not {t.dtype}: give t.float()")
