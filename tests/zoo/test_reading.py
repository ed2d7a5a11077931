import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unfog.zoo.reading import UnreadableError, read

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def same(found: Any) -> bool:
    return set(found) == set(TENSORS) and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch_old_and_new_are_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    assert same(read(path).tensors)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    assert same(read(tmp_path / "weights.safetensors").tensors)


def test_of_several_sets_of_weights_one_has_to_be_named(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    torch.save({"model": {"a": torch.zeros(1)}, "ema": TENSORS, "step": 3}, path)
    with pytest.raises(UnreadableError, match="holds the sets of weights ema, model; say which"):
        read(path)
    with pytest.raises(UnreadableError, match="no weights named 'emma'; it has the sets of weights ema, model"):
        read(path, "emma")
    assert same(read(path, "ema").tensors)


def test_one_set_of_weights_within_a_file_is_taken(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "weights.ckpt")
    assert same(read(tmp_path / "weights.ckpt").tensors)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(UnreadableError, match="holds no weights"):
        read(tmp_path / "weights.pt")


def test_a_file_that_would_have_to_be_unpickled_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    torch.save({"ema": TENSORS, "args": argparse.Namespace(lr=1e-4)}, path)
    with pytest.raises(UnreadableError, match=r"without running code .* safetensors\.torch\.save_file"):
        read(path)


def test_a_pkl_is_not_even_opened(tmp_path: Path) -> None:
    (tmp_path / "network.pkl").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"a \.pkl file holds Python objects.* safetensors\.torch\.save_file"):
        read(tmp_path / "network.pkl")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_told_to_be_damaged(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"weights{suffix}"
    big = {name: torch.randn(64, 64) for name in "ab"}
    if suffix == ".pt":
        torch.save(big, path)
    else:
        save_file(big, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableError, match=r"is damaged|is not a whole safetensors file"):
        read(path)


def test_what_is_not_there_or_of_another_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="there is no file or folder"):
        read(tmp_path / "nowhere.pt")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"expected a \.safetensors file"):
        read(tmp_path / "weights.h5")
    with pytest.raises(UnreadableError, match=r"it has no config\.json"):
        read(tmp_path)


def folder(home: Path, **files: dict[str, torch.Tensor]) -> Path:
    home.mkdir(parents=True)
    (home / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    for name, tensors in files.items():
        save_file(tensors, home / f"{name}.safetensors")
    return home


def test_a_pipeline_is_read_from_the_folder_of_its_network(tmp_path: Path) -> None:
    folder(tmp_path / "transformer", diffusion_pytorch_model=TENSORS)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta_end": 0.02}')
    (tmp_path / "vae").mkdir()
    stored = read(tmp_path)
    assert same(stored.tensors)
    assert stored.path == tmp_path / "transformer"
    assert stored.config == {"_class_name": "UNet2DModel"}
    assert stored.scheduler == {"beta_end": 0.02}
    assert stored.autoencoder


INDEX = "diffusion_pytorch_model.safetensors.index.json"


def test_weights_in_several_files_are_put_together(tmp_path: Path) -> None:
    home = folder(tmp_path / "unet", one={"a": TENSORS["a"]}, two={"b": TENSORS["b"]})
    (home / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert same(read(home).tensors)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, r"'three\.safetensors', which is not in"),
        ({"a": "../one.safetensors"}, r"'\.\./one\.safetensors', which is not in"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "holds b, which .* places elsewhere"),
        ({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}, "lacks c"),
        (None, "does not say which file"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path, places: Any, words: str) -> None:
    home = folder(tmp_path / "unet", one={"a": TENSORS["a"]}, two={"b": TENSORS["b"]})
    (home / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UnreadableError, match=words):
        read(home)


def test_a_folder_without_weights_and_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    home = folder(tmp_path / "unet")
    with pytest.raises(UnreadableError, match="holds no weights"):
        read(home)
    save_file(TENSORS, home / "diffusion_pytorch_model.safetensors")
    for content, words in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (home / "config.json").write_text(content)
        with pytest.raises(UnreadableError, match=words):
            read(home)
