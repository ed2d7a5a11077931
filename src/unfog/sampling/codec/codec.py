"""Codecs: from data to what is diffused, and back."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Codec(nn.Module, ABC):
    """The interface."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Map data ``(B, ...)`` to latents ``(B, ...)``."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Map latents back to data."""


class Identity(Codec):
    """Pixels are diffused as they are."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z
