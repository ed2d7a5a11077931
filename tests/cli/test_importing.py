from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.cli import main


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A small U-Net and a small DiT, as diffusers saves them."""
    from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    with torch.random.fork_rng(devices=[]):
        UNet2DModel(8, 1, 1, block_out_channels=(64, 64), layers_per_block=1, **blocks).save_pretrained(
            tmp_path / "unet"
        )
        size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 4}
        DiTTransformer2DModel(**size, out_channels=8, num_embeds_ada_norm=3).save_pretrained(tmp_path / "dit")
    for name in ("unet", "dit"):
        DDPMScheduler(100, clip_sample=name == "unet").save_pretrained(tmp_path / name)
    return tmp_path


def test_what_is_imported_is_sampled_as_pictures(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "unet", "--as", "diffusers", "--out", "run"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == "run"
    assert "with 100 evaluations a sample" in told.err
    assert main(["sample", "run", "-n", "2", "--steps", "2", "--out", "samples"]) == 0
    assert sorted(path.name for path in Path("samples").iterdir()) == ["000000.png", "000001.png", "grid.png"]


def test_codes_are_sampled_as_numbers_of_any_range_and_made_again(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "dit", "--as", "diffusers", "--out", "run"]) == 0
    assert "the autoencoder that makes pictures of them is not part of Unfog yet" in capsys.readouterr().err
    assert main(["sample", "run", "-n", "2", "--steps", "2", "--out", "samples"]) == 0
    assert "a NumPy array (4, 4, 4) of float32" in capsys.readouterr().err.replace("\n", " ")
    names = sorted(path.name for path in Path("samples").iterdir())
    assert names == ["000000.json", "000000.npy", "000001.json", "000001.npy"]
    code = np.load("samples/000001.npy")
    assert code.dtype == np.float32
    assert np.abs(code).max() > 1
    assert main(["sample", "run", "--from", "samples/000001.npy", "--out", "again"]) == 0
    assert np.allclose(np.load("again/000001.npy"), code, atol=1e-5)  # in a batch of one, sums are in another order
    assert main(["sample", "run", "-n", "2", "--steps", "2", "--out", "samples"]) == 2
    assert "000000.npy exists already" in capsys.readouterr().err


def test_the_list_tells_every_model_and_its_size(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--list"]) == 0
    told = capsys.readouterr().out
    for words in ("ddpm-cifar10", "35.7 M", "adm-imagenet256-uncond", "dit-xl-2-512", "32x32x4", "diffusers"):
        assert words in told


def test_without_a_run_folder_it_lies_with_the_others(folders: Path) -> None:
    assert main(["import", "unet", "--as", "diffusers"]) == 0
    assert (folders / "runs" / "unet" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unet"], "--as NAME"),
        (["--as", "ddpm-cifar10"], "give a file or folder"),
        (["unet", "--as", "ddpm-cifar"], "did you mean ddpm-cifar10?"),
        (["nowhere", "--as", "ddpm-cifar10"], "there is no file or folder nowhere"),
        (["unet", "--as", "ddpm-cifar10"], "unet is not ddpm-cifar10: in_channels is 1, not 3"),
        (["unet", "--as", "diffusers", "--entry", "ema"], "has no entries such as 'ema'"),
    ],
)
def test_what_cannot_be_imported_is_told_in_a_line(
    folders: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", *arguments, "--out", "run"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not Path("run").exists()
