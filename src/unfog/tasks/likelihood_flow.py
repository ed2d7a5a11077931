"""Learning an invertible network by the likelihood of dequantised data.

The loss is in bits for each dimension: ``(-log p(x + u) / D + ln 127.5) / ln 2`` with u uniform over a level, since a
density per level is one per unit of data in [-1, 1] over 127.5. In expectation it bounds the bits of the levels
themselves from above.

Sources:
    Theis, van den Oord, Bethge 2016 (arXiv 1511.01844), section 3.1: dequantisation. Dinh et al. 2017 (1605.08803),
    section 3: the density by change of variables.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.nn.coupling_flow import CouplingFlow
from unfog.diffusion.random import Rng
from unfog.sampling.likelihood import LEVELS, dequantized
from unfog.tasks.task import Loss, Task


class LikelihoodFlow(Task):
    """Minimise the bits per dimension of dequantised pictures.

    Args:
        network: the flow; its scales should have been set by ``CouplingFlow.fit``.
    """

    def __init__(self, network: CouplingFlow) -> None:
        super().__init__()
        self.network = network

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        """Return the mean bits per dimension.

        Args:
            batch: ``x0`` of 8-bit levels, and ``label`` for a flow that knows classes.
            player: ``"model"``.
            rng: one key per example, for the noise within a level.
        """
        label = batch.values["label"] if self.network.config.num_classes is not None else None
        total = self.bits(batch.values["x0"], label, rng=rng).mean()
        return Loss(total, {"bits": total.detach()})

    def bits(self, x0: Tensor, label: Tensor | None, *, rng: Rng) -> Tensor:
        """Return bits per dimension of pictures ``(B, C, H, W)``, with one draw of the noise: ``(B,)``."""
        # In full precision always: in 16 bits the map is not undone by its inverse, nor its determinant the right one.
        with torch.autocast(x0.device.type, enabled=False):
            density = self.network.log_density(dequantized(x0, rng=rng), label)
        return (-density / self.network.config.dimensions + math.log(LEVELS)) / math.log(2.0)
