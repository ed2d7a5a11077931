import math

import pytest
import torch

from unfog.data.batch import Batch
from unfog.diffusion.nn.coupling_flow import CouplingFlow, FlowConfig
from unfog.diffusion.random import Rng
from unfog.sampling.likelihood import dequantized
from unfog.tasks.likelihood_flow import LikelihoodFlow


def make(classes: int | None = None) -> LikelihoodFlow:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return LikelihoodFlow(CouplingFlow(FlowConfig(1, (4, 4), 4, 1, classes)))


def test_the_loss_is_the_density_of_dequantised_data_in_bits_a_level() -> None:
    task, ids = make(), torch.arange(5)
    x0 = torch.randint(0, 256, (5, 1, 4, 4), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    found = task.loss(Batch({"x0": x0}, ids, 0 * ids, ids), "model", rng=Rng.of(2, 5))
    with torch.no_grad():
        nats = -task.network.log_density(dequantized(x0, rng=Rng.of(2, 5)))
    # Per pixel, and with a level as the unit of the density instead of 127.5 of them.
    expected = (nats / 16 + math.log(127.5)).mean() / math.log(2)
    assert float(found.parts["bits"]) == pytest.approx(float(expected), rel=1e-6)


def test_uniform_noise_takes_eight_bits_at_the_least() -> None:
    task = make()
    x0 = torch.randint(0, 256, (400, 1, 4, 4), generator=torch.Generator().manual_seed(1)) / 127.5 - 1
    with torch.no_grad():
        assert float(task.bits(x0, None, rng=Rng.of(0, 400)).mean()) > 8


def test_a_flow_of_classes_is_told_them() -> None:
    task, ids = make(classes=2), torch.arange(2)
    for parameter in task.parameters():
        parameter.data += 0.3
    losses = [
        task.loss(
            Batch({"x0": torch.zeros(2, 1, 4, 4), "label": torch.tensor(label)}, ids, 0 * ids, ids),
            "model",
            rng=Rng.of(0, 2),
        )
        for label in ([0, 0], [1, 1], [0, 0])
    ]
    assert float(losses[0].parts["bits"]) == float(losses[2].parts["bits"])
    assert abs(float(losses[0].parts["bits"]) - float(losses[1].parts["bits"])) > 0.01
