from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import unfog
from unfog import api
from unfog.data.dataset import Dataset
from unfog.recipe.export import read_record
from unfog.recipes import named

TINY = ["train.steps=2", "train.batch_size=4", "network.widths=[32]", "network.blocks=[0]", "network.attention=[]"]
TINY += ["network.middle_attention=false", "data.limit=20"]


def test_a_model_is_trained_sampled_from_and_loaded_again_in_a_few_lines(tmp_path: Path) -> None:
    pipeline = unfog.train("digits", out=tmp_path / "run", overrides=TINY)
    samples = pipeline.sample(unfog.SampleRequest(count=2, labels=[3, 8], seed=1))
    grid = unfog.save_images(samples, tmp_path / "images")
    again = unfog.load(tmp_path / "run")
    assert torch.equal(again.sample(samples.request).x, samples.x)
    assert grid.is_file()
    assert read_record(tmp_path / "images" / "000001.png").request.labels == 8


def test_a_mistyped_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'trian'; it has .*train"):
        _ = unfog.trian


def test_everything_that_is_promised_is_there() -> None:
    assert all(getattr(unfog, name) is not None for name in unfog.__all__)
    assert set(unfog.__all__) <= set(dir(unfog))


def test_a_run_is_not_trained_over_another(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(FileExistsError):
        unfog.train("digits", out=tmp_path, overrides=TINY)


def test_a_folder_of_samples_is_scored_without_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = named("digits").sample
    request = unfog.SampleRequest(count=3, settings=settings)
    unfog.save_images(unfog.Samples(torch.rand(3, 1, 8, 8), request, settings), tmp_path)
    scored: list[Dataset] = []
    stick = SimpleNamespace(score=lambda pictures, seed: scored.append(pictures))
    monkeypatch.setattr(api, "yardstick", lambda *_, **__: stick)
    unfog.score(tmp_path, against="digits")
    unfog.score(unfog.Samples(torch.rand(2, 1, 8, 8), replace(request, count=2, labels=[1, 0]), settings), "x")
    assert [len(pictures) for pictures in scored] == [3, 2]
    assert ["label" in pictures.info.fields for pictures in scored] == [False, True]
