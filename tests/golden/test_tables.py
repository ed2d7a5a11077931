"""Tables of betas against those of diffusers, which are formed in float32."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from unfog.diffusion.schedule import linear_betas, scaled_linear, scaled_linear_betas
from unfog.diffusion.tables import quadratic_betas, sigmoid_betas, zero_terminal

with warnings.catch_warnings():
    # Importing diffusers warns of what its own dependencies have deprecated.
    warnings.simplefilter("ignore")
    from diffusers import DDPMScheduler
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr


@pytest.mark.parametrize("steps", [100, 1000])
def test_betas_agree(steps: int) -> None:
    for name, ours in (("sigmoid", sigmoid_betas(steps)), ("scaled_linear", quadratic_betas(steps))):
        theirs = DDPMScheduler(steps, beta_schedule=name, beta_start=1e-4, beta_end=0.02).betas
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=0)


def test_the_rescaled_table_agrees() -> None:
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(scaled_linear_betas()), 0)
    ours = torch.tensor(zero_terminal(scaled_linear()).alphas_cumprod, dtype=torch.float64)
    # The same numbers by way of betas and back.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_linear_betas_are_the_default_of_diffusers() -> None:
    torch.testing.assert_close(linear_betas().float(), DDPMScheduler(1000).betas, rtol=1e-5, atol=0)
