"""Learning to name the class of noisy data: the classifier of classifier guidance.

    L = E_{x0, y, eps, t} [ -log p(y | alpha_t x0 + sigma_t eps, t) ]

whose minimum is the exact posterior of the class given the noisy data, at each noise level.

Source:
    Dhariwal, Nichol 2021 (arXiv 2105.05233), section 4: trained on the noise of the diffusion model, with random crops
    against over-fitting. Its gradient matters, not its answer: one that is too sure of itself guides badly, so watch
    the loss on held-out data.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from unfog.data.batch import Batch
from unfog.diffusion.checks import require
from unfog.diffusion.parameterization import Parameterization
from unfog.diffusion.process import Process
from unfog.diffusion.random import Rng
from unfog.diffusion.times import Importance, Times
from unfog.sampling.guidance.classifier import NetworkClassifier
from unfog.tasks.classification import Augment
from unfog.tasks.task import Loss, Task

BANDS = ("low", "middle", "high")
"""Thirds of the density of training times, from the least noise to the most."""


class Answers(NamedTuple):
    """What a classifier made of examples, ``(B,)`` each.

    Attributes:
        cross_entropy: in nats, of the labels as they are smoothed.
        right: 1 where the likeliest class is the label, else 0.
    """

    cross_entropy: Tensor
    right: Tensor


class NoisyClassification(Task):
    """Minimise the cross entropy between a network's logits for noisy data and the labels.

    The batch gives ``x0`` and ``label``. Parts of the loss are the cross entropy, the share of right answers
    (``accuracy``), and that at low, middle and high noise (``accuracy_low`` and so on), which are thirds of the density
    of the times. Their mean is ``accuracy``: each is the share in the batch over a third, so that in a small batch it
    may come out above 1.

    Args:
        network: called as ``network(x, c_noise)``; answers ``(B, classes)``.
        classes: number of classes, at least 2; labels are 0 to ``classes - 1``.
        process: that makes the noise: the denoiser's.
        times: density of the training times.
        parameterization: that of the denoiser, if the network is to be given data and noise levels as it scales them;
            else as ``NetworkClassifier`` has it.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        augment: applied to ``x0`` before noise is added.

    Raises:
        ValueError: if an argument is out of its range, or the times want a history of losses.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        process: Process,
        times: Times,
        *,
        parameterization: Parameterization | None = None,
        label_smoothing: float = 0.0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        require(0 <= label_smoothing < 1, f"label_smoothing in [0, 1), not {label_smoothing}")
        require(not isinstance(times, Importance), "times without a history of losses, which only denoising keeps")
        self.classifier = NetworkClassifier(network, process, classes, parameterization)
        self.times = times
        self.label_smoothing = label_smoothing
        self.augment = augment

    def players(self) -> Mapping[str, nn.Module]:
        return {"model": self.classifier.network}

    def loss(self, batch: Batch, player: str, *, rng: Rng) -> Loss:
        """Return the mean cross entropy at random times.

        Raises:
            ValueError: if the player is unknown, the batch has no labels, or the network another number of classes.
        """
        require(player == "model", f"the player 'model' of classification, got {player!r}")
        u, _, answers = self._drawn(batch, rng)
        total = answers.cross_entropy.mean()
        parts = {"cross_entropy": total.detach(), "accuracy": answers.right.mean()}
        band = (u * len(BANDS)).long().to(answers.right.device)
        for number, name in enumerate(BANDS):
            parts[f"accuracy_{name}"] = len(BANDS) * (answers.right * (band == number)).mean()
        return Loss(total, parts)

    def describe(self, batch: Batch, player: str, *, rng: Rng) -> Mapping[str, Tensor]:
        _, t, answers = self._drawn(batch, rng)
        log_snr = self.classifier.process.schedule.log_snr(t)
        return {"t": t, "log_snr": log_snr, "loss": answers.cross_entropy}

    def answers(self, x0: Tensor, label: Tensor, t: Tensor, *, rng: Rng) -> Answers:
        """Return what the classifier makes of data that noise was added to.

        Args:
            x0: ``(B, ...)`` clean data.
            label: ``(B,)`` int64.
            t: ``(B,)`` times in (0, 1].
            rng: one key per example, for the noise.
        """
        process = self.classifier.process
        x_t = process.add_noise(x0, process.noise_like(x0, rng=rng), t)
        logits: Tensor = self.classifier(x_t, t)
        entropy = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing, reduction="none")
        return Answers(entropy, (logits.detach().argmax(1) == label).to(logits.dtype))

    def _drawn(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor, Answers]:
        """Return uniform numbers and times of the examples, ``(B,)`` each, and the answers at them."""
        require("label" in batch.values, f"a batch with labels to classify, got {sorted(batch.values)}")
        x0, label = batch.values["x0"], batch.values["label"]
        u = self.times.uniforms(rng)
        t = self.times.at(u, rng, self.classifier.process.schedule)
        clean = x0 if self.augment is None else self.augment(x0, rng)
        return u, t, self.answers(clean, label, t, rng=rng)
