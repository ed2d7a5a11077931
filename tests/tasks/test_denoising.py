import torch
from torch import Tensor, nn

from unfog.data.batch import Batch
from unfog.diffusion.denoiser import NetworkDenoiser
from unfog.diffusion.parameterization import V
from unfog.diffusion.process import Gaussian
from unfog.diffusion.random import Purpose, Rng
from unfog.diffusion.schedule import Cosine
from unfog.diffusion.times import Uniform
from unfog.diffusion.weighting import Constant
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.tasks.denoising import Denoising


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(5, 5), nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.dropout(self.layer(x)) + t.view(-1, 1)  # type: ignore[no-any-return]


def drawn() -> tuple[Denoising, Batch, Rng]:
    torch.manual_seed(0)
    task = Denoising(NetworkDenoiser(Network(), Gaussian(Cosine()), V()), Unconditional(), Uniform(), Constant(V()))
    rng = Rng.of(3, [4, 9, 1, 7])
    x0 = rng.normal((5,), Purpose.SCRATCH)
    return task, Batch({"x0": x0}, rng.sample, rng.step.expand(4), rng.position), rng


def test_the_losses_that_are_told_of_examples_are_what_the_loss_is_the_mean_of() -> None:
    task, batch, rng = drawn()
    torch.manual_seed(1)
    total = task.loss(batch, "model", rng=rng).total
    torch.manual_seed(1)  # the same dropout
    assert torch.equal(task.describe(batch, "model", rng=rng)["loss"].mean(), total)


def test_the_noise_levels_that_are_told_are_those_that_are_drawn() -> None:
    task, batch, rng = drawn()
    told = task.describe(batch, "model", rng=rng)
    assert torch.equal(told["t"], Uniform().draw(rng, Cosine()))
    assert torch.equal(told["log_snr"], Cosine().log_snr(told["t"]))
