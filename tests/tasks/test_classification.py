import math

import pytest
import torch
from torch import nn

from unfog.data.batch import Batch
from unfog.diffusion.random import Purpose, Rng
from unfog.tasks.classification import Classification


class Given(nn.Module):
    """Answers with the logits it was given, whatever it is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x):
        return self.logits


def batch_of(labels, x0=None):
    ids = torch.arange(len(labels))
    values = {"x0": torch.zeros(len(labels), 2) if x0 is None else x0, "label": torch.tensor(labels)}
    return Batch(values, ids, torch.zeros_like(ids), ids)


def loss_of(task, batch):
    return task.loss(batch, "model", rng=Rng.of(0, len(batch.ids)))


def test_a_network_that_knows_nothing_pays_the_logarithm_of_the_number_of_classes():
    loss = loss_of(Classification(Given(torch.zeros(4, 7)), 7), batch_of([0, 3, 6, 1]))
    assert loss.total.item() == pytest.approx(math.log(7), abs=1e-6)


def test_the_lowest_smoothed_loss_is_the_entropy_of_the_smoothed_targets():
    smoothing, classes = 0.2, 4
    targets = torch.full((3, classes), smoothing / classes)
    labels = [0, 2, 3]
    targets[torch.arange(3), torch.tensor(labels)] += 1 - smoothing
    entropy = float(-(targets * targets.log()).sum(1).mean())
    task = Classification(Given(targets.log()), classes, label_smoothing=smoothing)
    loss = loss_of(task, batch_of(labels)).total
    # float32 with numbers of order one.
    assert loss.item() == pytest.approx(entropy, abs=1e-6)
    loss.backward()
    assert task.network.logits.grad.abs().max() < 1e-6


def test_the_loss_is_the_mean_over_the_examples():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    both = loss_of(Classification(Given(logits), 2), batch_of([0, 0])).total
    single = [loss_of(Classification(Given(logits[i : i + 1]), 2), batch_of([0])).total for i in (0, 1)]
    assert both.item() == pytest.approx(sum(single).item() / 2, abs=1e-6)


def test_the_parts_tell_the_share_of_right_answers():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    parts = loss_of(Classification(Given(logits), 2), batch_of([0, 0, 1, 1])).parts
    assert float(parts["accuracy"]) == 0.5
    assert not any(part.requires_grad for part in parts.values())


def test_separable_classes_are_learned_completely():
    torch.manual_seed(0)
    labels = [i % 3 for i in range(30)]
    x0 = torch.eye(3)[labels] + 0.1 * torch.randn(30, 3)
    network = nn.Linear(3, 3)
    task, batch = Classification(network, 3), batch_of(labels, x0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        loss_of(task, batch).total.backward()
        optimizer.step()
    assert float(loss_of(task, batch).parts["accuracy"]) == 1.0


def test_the_augmentation_sees_the_examples_with_their_own_keys():
    def augment(x0, rng):
        return x0 + rng.uniform(x0.shape[1:], Purpose.AUGMENT)

    torch.manual_seed(0)
    task = Classification(nn.Linear(2, 2), 2, augment=augment)
    batch = batch_of([0, 1, 1])
    whole = loss_of(task, batch).total
    rng = Rng.of(0, 3)
    parts = [
        task.loss(
            Batch({k: v[i : i + 1] for k, v in batch.values.items()}, *(v[i : i + 1] for v in batch[1:])),
            "model",
            rng=rng[i : i + 1],
        ).total
        for i in range(3)
    ]
    assert whole.item() == pytest.approx(sum(parts).item() / 3, abs=1e-6)


def test_a_batch_without_labels_is_refused():
    batch = batch_of([0])
    del batch.values["label"]
    with pytest.raises(ValueError, match="'label'"):
        loss_of(Classification(Given(torch.zeros(1, 2)), 2), batch)


def test_a_network_with_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 5\)"):
        loss_of(Classification(Given(torch.zeros(2, 5)), 3), batch_of([0, 1]))


@pytest.mark.parametrize(("classes", "smoothing"), [(1, 0.0), (3, 1.0), (3, -0.1)])
def test_arguments_out_of_range_are_refused(classes, smoothing):
    with pytest.raises(ValueError, match=r"classes|label_smoothing"):
        Classification(Given(torch.zeros(1, 3)), classes, label_smoothing=smoothing)
