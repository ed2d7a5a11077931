import pytest
import torch

from unfog.diffusion.parameterization import Eps, V
from unfog.diffusion.schedule import CleanEnd, Tabulated, cosine, linear, scaled_linear
from unfog.diffusion.tables import quadratic_betas, sigmoid_betas, zero_terminal


def test_quadratic_betas_are_linear_in_their_root_between_the_ends() -> None:
    betas = quadratic_betas(50)
    assert betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-15)
    steps = betas.sqrt().diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-12, atol=0)


def test_sigmoid_betas_are_a_logistic_curve_between_the_ends() -> None:
    betas = sigmoid_betas(41, 0.001, 0.101)
    share = (betas - 0.001) / 0.1
    logit = share.log() - (1 - share).log()
    # The share is formed from a difference of betas that keeps 13 digits.
    torch.testing.assert_close(logit, torch.linspace(-6, 6, 41, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("table", [linear(), cosine(), scaled_linear(clean=CleanEnd.FIRST_LEVEL)])
def test_a_rescaled_table_keeps_its_first_level_and_ends_in_pure_noise(table: Tabulated) -> None:
    rescaled = zero_terminal(table)
    assert rescaled.alphas_cumprod[0] == table.alphas_cumprod[0]
    assert rescaled.alphas_cumprod[-1] == 0.0
    assert rescaled.clean is table.clean


def test_the_roots_of_a_rescaled_table_are_shifted_and_stretched_alike() -> None:
    before, after = (
        torch.tensor(table.alphas_cumprod, dtype=torch.float64).sqrt() for table in (linear(), zero_terminal(linear()))
    )
    stretch = after.diff() / before.diff()
    # Differences of neighbouring roots keep 12 digits.
    torch.testing.assert_close(stretch, stretch.mean().expand_as(stretch), rtol=1e-9, atol=0)


def test_rescaling_again_changes_nothing() -> None:
    once = zero_terminal(linear())
    again = torch.tensor(zero_terminal(once).alphas_cumprod, dtype=torch.float64)
    torch.testing.assert_close(again, torch.tensor(once.alphas_cumprod, dtype=torch.float64), rtol=1e-15, atol=0)


def test_eps_is_refused_on_a_rescaled_table_and_v_is_not() -> None:
    with pytest.raises(ValueError, match="predict V, X0, Flow or EDM"):
        Eps().check(zero_terminal(linear()))
    V().check(zero_terminal(linear()))


def test_the_betas_of_a_table_are_those_that_it_was_made_of() -> None:
    betas = sigmoid_betas(60)
    # One minus a quotient near 1 keeps the digits of 1.
    torch.testing.assert_close(Tabulated.from_betas(betas).betas(), betas, rtol=0, atol=1e-15)


@pytest.mark.parametrize("make", [lambda: quadratic_betas(1), lambda: sigmoid_betas(10, 0.2, 0.1)])
def test_settings_out_of_range_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"^expected steps"):
        make()
