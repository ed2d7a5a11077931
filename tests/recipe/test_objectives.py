"""Objectives that a recipe chooses, from its text to a trained run that is sampled from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unfog.diffusion.coupling import MinibatchOT
from unfog.diffusion.energy import Gradient
from unfog.diffusion.nn.uncertainty import WithUncertainty
from unfog.diffusion.nn.unet_config import UNetConfig
from unfog.diffusion.random import Rng
from unfog.diffusion.times import Curriculum, Importance, LogNormal, Uniform
from unfog.diffusion.weighting import P2, Uncertainty
from unfog.recipe.build import build_task, fit_to_data, notices
from unfog.recipe.card import DataCard
from unfog.recipe.data import open_data
from unfog.recipe.errors import RecipeError
from unfog.recipe.load import dump, load, override
from unfog.recipe.run import Run, initial_network
from unfog.recipe.schema import Recipe
from unfog.recipe.train import train
from unfog.recipes import RECIPES, named
from unfog.sampling.guidance.bounds import Clip, DynamicThreshold
from unfog.sampling.request import SampleRequest
from unfog.tasks.augmentation import Augmentation
from unfog.tasks.hybrid import FixedVariance, LearnedVariance

CHOICES = {
    "uncertainty": ["weight=uncertainty"],
    "importance": ["times={kind: importance, density: uniform, levels: 2, history: 2}"],
    "curriculum": ["times={kind: curriculum, start: uniform, end: log_normal, examples: 16}"],
    "coupling": ["schedule=rectified_flow", "parameterization=flow", "weight=constant", "coupling=minibatch_ot"],
    "variance": ["variance=learned"],
    "energy": ["energy=true", "parameterization=edm", "weight=p2"],
    "all": [
        "energy=true",
        "weight={kind: uncertainty, of: p2}",
        "times={kind: importance, density: uniform, levels: 2}",
    ],
    "augmentation": ["augmentation.probability=0.5"],
    "score": ["schedule=variance_preserving", "parameterization=score", "weight={kind: constant, of: eps}"],
}


def test_the_choices_of_a_recipe_are_written_and_read(tiny: Recipe) -> None:
    settings = ["weight={kind: uncertainty, of: p2}", "variance=learned", "variance.weight=0.002"]
    settings += ["times={kind: importance, density: {kind: curriculum, start: uniform, end: log-normal, examples: 9}}"]
    settings += ["sample.bounds={kind: dynamic-threshold, percentile: 0.9}"]
    made = override(tiny, settings)
    assert made.weight == Uncertainty(P2())
    assert made.variance == LearnedVariance(weight=0.002)
    assert made.times == Importance(Curriculum(Uniform(), LogNormal(), 9))
    assert made.sample.bounds == DynamicThreshold(0.9)
    assert load(dump(made)) == made
    assert override(tiny, ["coupling=minibatch-ot", "coupling.by_condition=false"]).coupling == MinibatchOT(False)
    assert override(made, ["sample.bounds=null", "variance=fixed"]).variance == FixedVariance()


def test_recipes_from_before_there_were_choices_are_read(tiny: Recipe) -> None:
    left_out = ("coupling:", "  kind: independent\n", "variance:", "  kind: fixed", "energy:", "  bounds:")
    text = "\n".join(line for line in dump(tiny).split("\n") if not (line + "\n").startswith(left_out))
    assert "coupling" not in text
    assert load(text) == tiny


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (["coupling=minibatch_ot", "variance=learned"], "coupling"),
        (["schedule=linear_betas", "variance={kind: learned, steps: 10}"], "variance.steps"),
        (["energy=true", "variance=learned"], ""),
        (["augmentation.probability=2.0"], "augmentation.probability"),
        (["augmentation.shift=0.1", "network={kind: dit, patch: 4, dim: 16, depth: 1, heads: 2}"], ""),
        (["augmentation.shift=0.1", "schedule=learned", "weight=constant", "times=uniform"], "augmentation"),
        (["network.augmentation=9"], ""),
        (["energy=true", "train.compile=true"], "train.compile"),
        (["energy=true", "train.parallel=shard"], "train.parallel"),
        (["schedule=learned", "weight=constant", "times=uniform", "coupling=minibatch_ot"], "coupling"),
        (["times={kind: importance, density: uniform, levels: 1}"], "times.levels"),
        (["weight={kind: p2, k: -1.0}"], "weight.k"),
        (["sample.bounds={kind: clip, limit: 0.0}"], "sample.bounds"),
    ],
)
def test_what_does_not_fit_together_is_refused(tiny: Recipe, settings: list[str], path: str) -> None:
    with pytest.raises(RecipeError, match="expected") as caught:
        override(tiny, settings)
    assert caught.value.path.startswith(path)


def test_augmentation_is_told_to_the_network_by_the_recipe(tiny: Recipe) -> None:
    made = override(tiny, ["augmentation.turn=0.1"])
    assert made.augmentation == Augmentation(turn=0.1)
    assert load(dump(made)) == made
    card = DataCard("", "", 0, (1, 8, 8), tuple(map(str, range(10))))
    fitted = fit_to_data(made, card)
    assert isinstance(fitted.network, UNetConfig)
    assert fitted.network.augmentation == 9
    plain = override(fitted, ["augmentation=null", "network.augmentation=0"])
    assert plain.augmentation is None
    assert fit_to_data(plain, card) == fit_to_data(tiny, card)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ("{kind: unet, widths: [48, 96], blocks: [1, 1], patch: 8, head_dim: 16}", "48 channels of the 64 numbers"),
        ("{kind: dit, patch: 8, dim: 32, depth: 1, heads: 2}", "32 channels of the 64 numbers"),
        ("{kind: dit, patch: 4, dim: 32, depth: 1, heads: 2}", ""),
        ("{kind: hybrid, widths: [32, 32], blocks: [1, 1], patch: 1, dim: 32, depth: 1, heads: 2}", ""),
    ],
)
def test_a_patch_that_noise_does_not_pass_is_warned_of_unless_the_data_are_predicted(
    tiny: Recipe, network: str, told: str
) -> None:
    recipe = override(tiny, [f"network={network}"])
    found = notices(recipe)
    assert len(found) == bool(told)
    assert all(told in notice and "parameterization=x0" in notice for notice in found)
    assert notices(override(recipe, ["parameterization=x0"])) == []


def test_no_recipe_of_ours_is_warned_of() -> None:
    assert {name: notices(named(name)) for name in RECIPES} == {name: [] for name in RECIPES}


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_a_learned_variance_doubles_the_channels(tiny: Recipe, network: str) -> None:
    settings = ["variance=learned"]
    if network == "dit":
        settings += ["network={kind: dit, patch: 4, dim: 16, depth: 1, heads: 2}"]
    made = fit_to_data(override(tiny, settings), DataCard("", "", 0, (1, 8, 8), tuple(map(str, range(10)))))
    assert (made.network.in_channels, made.network.out_channels) == (1, 2)
    denoiser = build_task(made, initial_network(made)).denoiser
    x_t = Rng.of(0, 2).normal((1, 8, 8), purpose=0)  # type: ignore[arg-type]
    fraction = denoiser(x_t, torch.tensor(0.5), {"label": torch.tensor([1, 2])}).variance_fraction
    # A fresh network answers with zeros.
    assert fraction is not None
    assert torch.equal(fraction, torch.full((2, 1, 8, 8), 0.5))


def test_what_is_learned_beside_the_network_is_built_with_it(tiny: Recipe) -> None:
    made = initial_network(override(tiny, CHOICES["all"]))
    assert isinstance(made, WithUncertainty)
    assert isinstance(made.network, Gradient)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_is_trained_resumed_and_sampled_from(choice: str, tiny: Recipe, tmp_path: Path) -> None:
    recipe = override(tiny, [*CHOICES[choice], "train.steps=3", "train.micro_batch=5", "save.checkpoint_every=1"])
    data = open_data(recipe.data)
    whole, cut = (Run.create(tmp_path / name, recipe, data.train.info) for name in ("whole", "cut"))
    losses = [step.loss for step in train(whole, data.train)]
    shorter = Run.open(cut.folder).changed(["train.steps=2"])
    assert [step.loss for step in train(shorter, data.train)] == losses[:2]
    # What was saved goes on in the same way, the history of losses and the uncertainty included.
    assert [step.loss for step in train(cut, data.train)] == losses[2:]
    assert Run.open(cut.folder).weights().sha256 == Run.open(whole.folder).weights().sha256
    pipeline = Run.open(whole.folder).pipeline()
    settings = replace(pipeline.settings, steps=3, guidance=2.0, bounds=Clip())
    found = pipeline.sample(SampleRequest(2, [1, 2], settings=settings)).x
    assert found.isfinite().all()
    assert found.abs().max() <= 1.0


def test_bounds_belong_to_data_not_to_codes(trained: Run) -> None:
    pipeline = trained.pipeline()
    pipeline.codec = type("Other", (), {})()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"expected bounds=None, got Clip"):
        pipeline.check(SampleRequest(1, 0, settings=replace(pipeline.settings, bounds=Clip())))
