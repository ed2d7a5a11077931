import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unfog.data.dataset import ArrayDataset
from unfog.evaluation import weights
from unfog.evaluation.card import ExtractorCard
from unfog.evaluation.extractors import (
    CLIP,
    IMAGENET,
    MODELS,
    Features,
    NetworkExtractor,
    inception,
    normalized,
    of_module,
    published,
    transformer,
)
from unfog.evaluation.weights import INCEPTION, PublishedFile, PublishedModel, folder_sha256
from unfog.files import write_tensors
from unfog.metrics.inception import Alignment, Inception, prepared

CARD = ExtractorCard("toy", "", "none", "x / 255", "3; grey repeated")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def pictures(count=5, channels=3, seed=0):
    shape = (count, channels, 9, 7)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def toy(channels=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 63, 4)).eval()


def scaled(pixels):
    return pixels / 255


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Inception()
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


def test_any_network_is_an_extractor_named_by_its_weights():
    extractor = of_module(toy(), scaled, CARD)
    expected = toy()(pictures() / 255)
    torch.testing.assert_close(extractor(pictures()), expected.detach())
    changed = toy()
    changed[1].bias.data += 1
    assert of_module(changed, scaled, CARD).identity.sha256 != extractor.identity.sha256
    assert of_module(toy(), scaled, CARD).identity == extractor.identity


def test_the_batch_size_does_not_matter():
    whole, parts = (of_module(toy(), scaled, CARD, batch_size=size)(pictures()) for size in (5, 2))
    torch.testing.assert_close(whole, parts)


def test_grey_pictures_are_repeated_and_alpha_is_refused():
    extractor = of_module(toy(), scaled, CARD)
    grey = pictures(channels=1)
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="4 channels"):
        extractor(pictures(channels=4))


def test_features_of_a_data_set_are_those_of_its_pictures():
    data = ArrayDataset(pictures().numpy())
    extractor = of_module(toy(), scaled, CARD)
    torch.testing.assert_close(extractor.of(data), extractor(pictures()))
    torch.testing.assert_close(extractor.of(data, torch.tensor([3, 0])), extractor(pictures())[[3, 0]])


def test_a_network_in_training_or_with_maps_for_features_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        of_module(toy().train(), scaled, CARD)
    with pytest.raises(ValueError, match="features"):
        of_module(nn.Identity().eval(), scaled, CARD)(pictures())


@pytest.fixture(scope="module")
def port(inception_file):
    return inception(inception_file)


@torch.inference_mode()
def test_inception_loads_strictly_from_both_kinds_of_file(port, inception_file, tmp_path):
    stored = torch.load(inception_file, weights_only=True)
    bare = {name: value for name, value in stored.items() if "num_batches" not in name}
    write_tensors(tmp_path / "w.safetensors", bare, {})
    graph = inception(tmp_path / "w.safetensors", Alignment.TENSORFLOW)
    for name, value in graph.network.state_dict().items():
        assert torch.equal(value, stored[name])
    features = port(pictures(1))
    torch.testing.assert_close(features, graph.network(prepared(pictures(1))))
    torch.testing.assert_close(graph(pictures(1)), graph.network(prepared(pictures(1), Alignment.TENSORFLOW)))
    torch.testing.assert_close(port.logits(features), graph.network.logits(features))
    assert port.identity.resize != graph.identity.resize
    assert port.identity.value_range != graph.identity.value_range


def test_random_weights_are_not_those_that_fid_is_defined_by(port, inception_file):
    assert port.identity.title.startswith("not FID")
    assert port.identity.sha256 == hashlib.sha256(inception_file.read_bytes()).hexdigest()


def test_weights_of_another_network_are_refused(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"fc.weight": torch.zeros(2, 2)}, {})
    with pytest.raises(ValueError, match="472 tensors are missing, left over or of another shape"):
        inception(tmp_path / "w.safetensors")
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="holds no weights"):
        inception(tmp_path / "w.pth")


def test_without_weights_and_network_the_error_says_where_to_put_what(cache):
    with pytest.raises(FileNotFoundError) as told:
        published(Features.INCEPTION)
    for words in (str(cache / INCEPTION.files[0]), str(cache / INCEPTION.files[1]), INCEPTION.url, "no network"):
        assert words in str(told.value)
    for which, model in MODELS.items():
        with pytest.raises(FileNotFoundError) as told:
            published(which)
        assert str(cache / model.name) in str(told.value)
        assert model.repository in str(told.value)


def test_weights_in_the_cache_are_found(cache, inception_file, port):
    cache.mkdir(parents=True)
    (cache / INCEPTION.files[0]).write_bytes(inception_file.read_bytes())
    assert published(Features.INCEPTION).identity == port.identity


def test_a_download_is_checked_by_its_digest(cache, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "published.bin"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    wanted = PublishedFile("toy", ("toy.bin",), source.as_uri(), digest[:8])
    found = wanted.find()
    assert found == cache / "toy.bin"
    assert found.read_bytes() == b"weights"
    wrong = PublishedFile("toy", ("other.bin",), source.as_uri(), "0" * 8)
    with pytest.raises(FileNotFoundError, match="hash"):
        wrong.find()
    assert not (cache / "other.bin").exists()


def test_a_folder_that_was_downloaded_is_taken_and_an_empty_one_refused(cache, monkeypatch):
    def download(repository, *, local_dir, allow_patterns):
        assert (repository, allow_patterns) == ("owner/toy", ["config.json", "*.safetensors"])
        Path(local_dir).mkdir(parents=True)
        (Path(local_dir) / "config.json").write_text("{}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json and"):
        PublishedModel("toy", "owner/toy").find()
    (cache / "toy" / "model.safetensors").write_bytes(b"")
    assert PublishedModel("toy", "owner/toy").find() == cache / "toy"


def test_given_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        published(Features.INCEPTION, tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        published(Features.DINOV2, tmp_path)


def dinov2(folder):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(config).eval()
    model.save_pretrained(folder)
    return model


def clip(folder):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=12, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=6,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def test_dinov2_answers_with_its_normalised_class_token(tmp_path):
    model = dinov2(tmp_path)
    extractor = transformer(tmp_path)
    x = normalized(pictures(2), 224, IMAGENET)
    torch.testing.assert_close(extractor(pictures(2)), model(pixel_values=x).last_hidden_state[:, 0])
    assert extractor.identity.sha256 == folder_sha256(tmp_path)
    assert extractor.logits(torch.zeros(2, 12)) is None


@torch.inference_mode()
def test_clip_answers_with_its_embedding_of_the_picture(tmp_path):
    model = clip(tmp_path)
    extractor = transformer(tmp_path)
    expected = model(pixel_values=normalized(pictures(2), 16, CLIP)).image_embeds
    torch.testing.assert_close(extractor(pictures(2)), expected)
    assert "16 x 16" in extractor.identity.resize


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="got bert"):
        transformer(tmp_path)


def test_pictures_are_stretched_as_pillow_does():
    from PIL import Image

    # Up and down: antialiasing matters only down.
    large = torch.randint(0, 256, (1, 3, 50, 37), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for pixels in (pictures(1), large):
        zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        ours = normalized(pixels, 24, (zero, one))[0] * 255
        image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).resize((24, 24), Image.Resampling.BICUBIC)
        theirs = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        # Pillow's weights are whole numbers over 2^22 or so: a half may round the other way.
        assert (ours - theirs).abs().max() <= 1


def test_the_own_features_are_not_published():
    with pytest.raises(ValueError, match="feature_extractor"):
        published(Features.OWN)


def test_the_cache_is_where_the_own_networks_are(cache):
    assert weights.feature_folder() == cache
    assert isinstance(of_module(toy(), scaled, CARD), NetworkExtractor)
