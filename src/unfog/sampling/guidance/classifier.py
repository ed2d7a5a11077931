"""Classifier guidance: towards data of a class, by the gradient of a classifier that knows noise.

By Bayes' rule the score of ``p_t(x | y)`` is that of ``p_t(x)`` plus ``grad log p(y | x_t)``. With a scale s on that
term samples follow ``p_t(x) p(y | x_t)^s`` (up to its integral), which for s above 1 prefers what the classifier is
certain of. In terms of x0 the estimate moves by

    s sigma_t^2 / alpha_t grad log p(y | x_t),

whatever the network predicts and whichever sampler asks.

Source:
    Dhariwal, Nichol 2021 (arXiv 2105.05233), section 4 and algorithms 1 and 2; algorithm 2 is what is computed here, in
    eps: ``eps - s sigma_t grad log p(y | x_t)``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unfog.diffusion.checks import require
from unfog.diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from unfog.diffusion.energy import recordable
from unfog.diffusion.parameterization import Parameterization, V
from unfog.diffusion.process import Process
from unfog.sampling.guidance.gradient import kept, reach, recording, slope


class NoisyClassifier(nn.Module, ABC):
    """The interface: names the class of noisy data.

    Attributes:
        process: that makes the noise.
        classes: number of classes.
    """

    process: Process
    classes: int

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return logits ``(B, classes)``, differentiable with respect to the data.

        Args:
            x_t: ``(B, ...)`` noisy data, float32 or float64.
            t: time in [0, 1], float32 or float64, ``()`` or ``(B,)``.
        """


class NetworkClassifier(NoisyClassifier):
    """A network that names the class of noisy data.

    It is given ``c_in x_t`` and the noise level as a denoiser's network is, in the dtype of its parameters.

    Args:
        network: called as ``network(x, c_noise)``; answers ``(B, classes)``.
        process: that makes the noise.
        classes: number of classes, at least 2.
        parameterization: whose ``c_in`` and ``c_noise`` the network is given; nothing else of it is used. ``V`` unless
            given, with which x_t is given as it is, and the time as the schedule tells it.
    """

    def __init__(
        self, network: nn.Module, process: Process, classes: int, parameterization: Parameterization | None = None
    ) -> None:
        super().__init__()
        require(classes >= 2, f"at least 2 classes, not {classes}")
        self.process = process
        self.classes = classes
        self.reader = NetworkDenoiser(network, process, parameterization or V())

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self.reader.network

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return logits ``(B, classes)``, at least float32.

        Raises:
            ValueError: if the network answers in another shape.
        """
        logits: Tensor = self.network(*self.reader.inputs(x_t, t))
        expected = (len(x_t), self.classes)
        require(logits.shape == expected, f"logits of shape {expected} from the network, got {tuple(logits.shape)}")
        # Log-sum-exp loses everything in 8 bits of mantissa.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class ClassifierGuided(Denoiser):
    """``x0 + scale sigma_t^2 / alpha_t grad log p(label | x_t)``.

    A scale of 0 is no guidance and asks no classifier. The denoiser may be conditional or not: the published
    models were both. Beyond ``gradient.NOISIEST`` the estimate stays as it is.

    Args:
        denoiser: estimates x0.
        classifier: of the same process, in evaluation mode.
        label: ``(B,)`` int64 in [0, classes), the class that each example is guided to.
        scale: s, finite; negative leads away from the class.

    Raises:
        ValueError: if the process of the classifier is another, or a label or the scale is out of range.
    """

    def __init__(self, denoiser: Denoiser, classifier: NoisyClassifier, label: Tensor, scale: float) -> None:
        super().__init__()
        require(math.isfinite(scale), f"a finite guidance scale, not {scale}")
        require(
            classifier.process == denoiser.process,
            f"a classifier of the denoiser's process {denoiser.process}, not of {classifier.process}: train one on it",
        )
        require(label.ndim == 1, f"labels (B,), got {tuple(label.shape)}")
        # Reading from another device would wait for it.
        if label.device.type == "cpu":
            wrong = sorted({int(k) for k in label.tolist() if not 0 <= k < classifier.classes})
            require(not wrong, f"labels from 0 to {classifier.classes - 1}, not {wrong[:8]}")
        self.process = denoiser.process
        self.denoiser = denoiser
        self.classifier = classifier
        self.label = kept({"label": label})["label"]
        self.scale = scale

    def begin(self) -> Denoiser:
        return self._around(self.denoiser.begin())

    def select(self, index: Tensor) -> Denoiser:
        return ClassifierGuided(self.denoiser.select(index), self.classifier, self.label[index], self.scale)

    def prepared(self, times: Sequence[Tensor]) -> Denoiser:
        return self._around(self.denoiser.prepared(times))

    def _around(self, denoiser: Denoiser) -> Denoiser:
        return ClassifierGuided(denoiser, self.classifier, self.label, self.scale)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        prediction: Prediction = self.denoiser(x_t, t, cond)
        if self.scale == 0:
            return prediction
        again = torch.is_grad_enabled()
        with recording(x_t) as point:
            log_p = self.classifier(point, recordable(t)).log_softmax(1)
            direction = slope(log_p.gather(1, self.label[:, None]).squeeze(1), point, again=again)
        return prediction._replace(x0=prediction.x0 + self.scale * reach(self.process, t, x_t) * direction)
