import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.zoo.peers import randomised
from torch import Tensor

from unfog.diffusion.nn.dit import DiTConfig
from unfog.recipe.networks import build_network
from unfog.recipe.run import Run, RunError
from unfog.sampling.request import SampleRequest
from unfog.zoo import published
from unfog.zoo.keymap import to_published
from unfog.zoo.load import import_checkpoint
from unfog.zoo.published import Published

TINY = {"widths": (64, 64), "blocks": (1, 1), "attention": (1,)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Published]:
    """The published models with small networks."""
    ddpm, adm, dit = (published.named(name) for name in ("ddpm-cifar10", "adm-imagenet256", "dit-xl-2-256"))
    edm = published.named("edm-cifar10-cond-vp")
    models = {
        "ddpm": replace(ddpm, network=replace(ddpm.network, **TINY), side=8),
        "adm": replace(adm, network=replace(adm.network, **TINY, head_dim=32, num_classes=3), side=8),
        "adm-uncond": replace(adm, network=replace(adm.network, **TINY, head_dim=32, num_classes=None), side=8),
        "edm": replace(edm, network=replace(edm.network, **TINY, num_classes=3), side=8),
        "dit": replace(dit, network=DiTConfig(4, 8, 2, dim=16, depth=1, heads=2, num_classes=3), side=4),
    }
    monkeypatch.setattr(published, "MODELS", {name: lambda model=model: model for name, model in models.items()})
    monkeypatch.setattr("unfog.zoo.load.MODELS", published.MODELS)
    return models


def a_file(model: Published, folder: Path, layout: int = 0) -> Path:
    network = randomised(build_network(model.network))
    state = network.state_dict()
    tensors = to_published(model.layouts[layout].keymap(model.network, state, model.side), state)
    path = folder / "weights.pt"
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


def same_network(run: Run, model: Published, path: Path) -> bool:
    """Whether the run's network, written down again, is the file."""
    state = run.network().state_dict()
    found = torch.load(path, weights_only=True)
    layout = next(layout for layout in model.layouts if layout.recognises(found))
    again = to_published(layout.keymap(model.network, state, model.side), state)
    unused = {name for item in layout.keymap(model.network, state, model.side) if item.unused for name in item.theirs}
    return set(again) == set(found) and all(
        torch.allclose(again[name], found[name], atol=1e-6) for name in found if name not in unused
    )


@pytest.mark.parametrize(
    ("name", "layout"), [("ddpm", 0), ("ddpm", 1), ("ddpm", 2), ("adm", 0), ("edm", 0), ("dit", 0), ("dit", 1)]
)
def test_an_imported_file_is_a_run_that_samples(
    tmp_path: Path, small: Mapping[str, Published], name: str, layout: int
) -> None:
    model = small[name]
    path = a_file(model, tmp_path, layout)
    run = import_checkpoint(path, name, tmp_path / "run").run
    assert Run.open(tmp_path / "run") == run
    assert same_network(run, model, path)
    settings = replace(run.recipe.sample, steps=2)
    pipeline = run.pipeline()
    labels = None if not pipeline.classes else [0, 2]
    answer = pipeline.sample(SampleRequest(2, labels=labels, settings=settings))
    assert answer.x.shape == (2, *model.shape)
    assert bool(answer.x.isfinite().all())


def test_what_is_left_out_is_told(tmp_path: Path, small: Mapping[str, Published]) -> None:
    imported = import_checkpoint(a_file(small["edm"], tmp_path), "edm", tmp_path / "run")
    assert list(imported.left_out) == ["model.map_augment.weight"]
    assert not import_checkpoint(a_file(small["ddpm"], tmp_path), "ddpm", tmp_path / "other").left_out


def test_a_model_that_never_saw_the_null_is_not_sampled_with_it(tmp_path: Path, small: Mapping[str, Published]) -> None:
    pipeline = import_checkpoint(a_file(small["adm"], tmp_path), "adm", tmp_path / "run").run.pipeline()
    with pytest.raises(ValueError, match="trained without condition dropout"):
        pipeline.check(SampleRequest(1))


def test_a_folder_of_diffusers_is_imported_by_what_it_says(tmp_path: Path, small: Mapping[str, Published]) -> None:
    from diffusers import DDPMScheduler, UNet2DModel

    home = tmp_path / "butterflies"
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    peer = UNet2DModel(8, 1, 1, block_out_channels=(64, 64), layers_per_block=1, **blocks)
    peer.save_pretrained(home)
    DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(home)
    run = import_checkpoint(home, "diffusers", tmp_path / "run", data="mnist").run
    assert run.recipe.name == "butterflies"
    assert run.recipe.data.path == "mnist"
    assert run.recipe.sample.steps == 100
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([40.0])
    with torch.no_grad():
        torch.testing.assert_close(run.network()(x, t), peer.eval()(x, t).sample, atol=1e-5, rtol=1e-5)


def test_a_folder_that_says_something_else_than_its_name_is_refused(
    tmp_path: Path, small: Mapping[str, Published]
) -> None:
    home = tmp_path / "folder"
    home.mkdir()
    tensors: dict[str, Tensor] = torch.load(a_file(small["ddpm"], tmp_path), weights_only=True)
    save_file(tensors, home / "diffusion_pytorch_model.safetensors")
    said: dict[str, Any] = {"_class_name": "UNet2DModel", "block_out_channels": [64, 64], "layers_per_block": 1}
    said |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    (home / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="is not ddpm: head_dim is 8, not None; same_padding is False, not True"):
        import_checkpoint(home, "ddpm", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_wrong_model_of_a_family_is_refused_and_the_right_one_named(
    tmp_path: Path, small: Mapping[str, Published]
) -> None:
    with pytest.raises(ValueError, match=r"weights\.pt is not adm: 1 missing: label_emb\.weight\. It fits adm-uncond"):
        import_checkpoint(a_file(small["adm-uncond"], tmp_path), "adm", tmp_path / "run")


def test_a_model_whose_constants_are_others_does_not_fit_itself(tmp_path: Path, small: Mapping[str, Published]) -> None:
    path = a_file(small["edm"], tmp_path)
    tensors = torch.load(path, weights_only=True)
    constants = [name for name in tensors if name.endswith("resample_filter")]
    torch.save(tensors | {name: tensors[name] + 1 for name in constants}, path)
    with pytest.raises(ValueError, match=r"should be a constant\. By its names it seems to be a network of EDM"):
        import_checkpoint(path, "edm", tmp_path / "run")


def test_the_wrong_family_is_refused_and_the_right_one_named(tmp_path: Path, small: Mapping[str, Published]) -> None:
    with pytest.raises(
        ValueError, match=r"is not dit, which is expected as a DiT, or .*: it seems to be a U-Net of guided"
    ):
        import_checkpoint(a_file(small["adm"], tmp_path), "dit", tmp_path / "run")


def test_a_missing_and_an_extra_tensor_are_refused(tmp_path: Path, small: Mapping[str, Published]) -> None:
    path = a_file(small["ddpm"], tmp_path)
    tensors = torch.load(path, weights_only=True)
    del tensors["conv_out.bias"]
    torch.save({**tensors, "conv_out.scale": torch.ones(1)}, path)
    with pytest.raises(
        ValueError,
        match=r"1 missing: conv_out\.bias; 1 unexpected: conv_out\.scale\. By its names it seems to be a UNet2D",
    ):
        import_checkpoint(path, "ddpm", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_alone_does_not_say_what_it_is(tmp_path: Path, small: Mapping[str, Published]) -> None:
    with pytest.raises(ValueError, match="expected a folder of diffusers"):
        import_checkpoint(a_file(small["ddpm"], tmp_path), "diffusers", tmp_path / "run")


def test_a_folder_that_holds_anything_is_not_written_to(tmp_path: Path, small: Mapping[str, Published]) -> None:
    path = a_file(small["ddpm"], tmp_path)
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        import_checkpoint(path, "ddpm", tmp_path)


def test_a_model_of_codes_has_no_data(tmp_path: Path, small: Mapping[str, Published]) -> None:
    run = import_checkpoint(a_file(small["dit"], tmp_path), "dit", tmp_path / "run").run
    with pytest.raises(RunError, match="diffuses codes of pictures"):
        run.data()
