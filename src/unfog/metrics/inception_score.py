"""The Inception Score: are samples recognisable one by one, and various taken together?

    exp(mean_x KL(p(y | x) || p(y))),    p(y) the mean of p(y | x) over the samples

It lies between 1 and the number of classes, needs no real examples, and therefore says nothing of how close samples are
to any. It is named for the published Inception network; with another classifier it is another number. It is biased
by the count, so the published protocol cuts 50,000 samples in 10 splits, and compares only at that count.

Source: T. Salimans et al., "Improved techniques for training GANs", 2016, arXiv 1606.03498, section 4.
"""

import torch
from torch import Tensor

from unfog.metrics.interval import LEVEL, Score
from unfog.metrics.interval import mean as mean_score

SPLITS = 10


def inception_score(logits: Tensor, *, seed: int, splits: int = SPLITS, level: float = LEVEL) -> Score:
    """Return the mean Inception Score over splits, with the normal interval of that mean.

    Args:
        logits: ``(N, classes)`` of a classifier; the published one leaves out the bias of its last layer.
        seed: of the order in which samples are dealt into splits; files of a folder are often sorted by class.
        splits: how many, at least 2 and at most N.
        level: confidence, strictly between 0 and 1.

    Raises:
        ValueError: if the shape is another one, a logit is not finite, or there are too few samples.

    Source: Salimans et al. 2016, arXiv 1606.03498, section 4.
    """
    if logits.ndim != 2 or not logits.isfinite().all():
        raise ValueError(f"expected finite logits (N, classes); got {tuple(logits.shape)}")
    if not 2 <= splits <= len(logits):
        raise ValueError(
            f"expected 2 splits or more and a sample in each; got {splits} splits of {len(logits)} samples"
        )
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    parts = logits.double()[order].tensor_split(splits)
    note = f"Inception Score, mean over {splits} splits of {len(logits)} samples, {len(parts[0])} at most in each"
    score = mean_score(torch.stack([_score(part) for part in parts]), note=note, level=level)
    return Score(score.value, score.low, score.high, len(logits), score.note)


def _score(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    log_mean = torch.logsumexp(log_p, 0) - torch.tensor(len(p), dtype=p.dtype).log()
    return (p * (log_p - log_mean)).sum(1).mean().exp()
