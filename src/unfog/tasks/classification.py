"""Learning to name the class of an example."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.batch import Batch
from unfog.diffusion.random import Rng
from unfog.tasks.task import Loss, Task

Augment = Callable[[Tensor, Rng], Tensor]
"""Takes clean examples ``(B, C, ...)`` and one key per example; returns examples of the same shape."""


class Classification(Task):
    """Minimise the cross entropy between a network's logits and the labels.

    The batch gives ``x0`` and ``label``; the network is called as ``network(x0)`` and answers ``(B,
    classes)``.

    Args:
        network: the classifier.
        classes: number of classes, at least 2; labels are 0 to ``classes - 1``.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        augment: applied to ``x0`` before the network sees it; draws from the keys that it is given, under
            ``Purpose.AUGMENT``.

    Raises:
        ValueError: if an argument is out of its range.

    Source: label smoothing as in C. Szegedy et al., "Rethinking the Inception architecture for computer
    vision", 2015, arXiv 1512.00567, section 7.
    """

    def __init__(
        self, network: nn.Module, classes: int, *, label_smoothing: float = 0.0, augment: Augment | None = None
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"telling classes apart needs two or more; got classes={classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1); got {label_smoothing}")
        self.network = network
        self.classes = classes
        self.label_smoothing = label_smoothing
        self.augment = augment

    def players(self) -> Mapping[str, nn.Module]:
        """Return the classifier."""
        return {"model": self.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        """Return the mean cross entropy, with the share of right answers as a part.

        Args:
            batch: ``x0`` and ``label`` are used.
            player: ``"model"``.
            rng: one key per example, for the augmentation.

        Raises:
            ValueError: if the player is unknown, the batch has no labels, or the network has another number
                of classes.
        """
        if player != "model":
            raise ValueError(f"classification has the player 'model'; got {player!r}")
        if "label" not in batch.values:
            raise ValueError(f"classification needs the field 'label'; the batch has {sorted(batch.values)}")
        x0, label = batch.values["x0"], batch.values["label"]
        logits = self.network(x0 if self.augment is None else self.augment(x0, rng))
        if logits.shape != (len(x0), self.classes):
            raise ValueError(
                f"expected logits of shape {(len(x0), self.classes)} from the network; got {tuple(logits.shape)}"
            )
        # In float32 whatever precision the network ran in: log-sum-exp loses everything in 8 bits of
        # mantissa.
        total = F.cross_entropy(logits.float(), label, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.argmax(1) == label).float().mean()
        return Loss(total, {"cross_entropy": total.detach(), "accuracy": accuracy})
