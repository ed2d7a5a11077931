import dataclasses
import json

import numpy as np
import pytest
import torch

from unfog.checkpoint import DamagedCheckpointError
from unfog.data.batch import Batch
from unfog.data.dataset import ArrayDataset, to_float
from unfog.evaluation.classifier import Budget
from unfog.evaluation.features import (
    FeatureCard,
    FeatureConfig,
    Pretext,
    Variants,
    feature_extractor,
    load_extractor,
    mirror,
    obstacle,
    turn,
)

TINY = FeatureConfig(budget=Budget(steps=12, epochs=40, batch_size=12, width=2, lr=2e-2))


def halves(count=60, *, labelled=True, seed=0, size=(8, 8)):
    """Two classes of images, one bright on the left and one on the right, with noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    pixels = rng.integers(0, 80, (count, 1, *size), dtype=np.uint8)
    middle = size[1] // 2
    pixels[label == 0, :, :, :middle] += 150
    pixels[label == 1, :, :, middle:] += 150
    return ArrayDataset(pixels, label if labelled else None, name="Toy set")


class Unreadable:
    """A data set that says what it is but lets nobody look at its examples."""

    def __init__(self, dataset):
        self.info = dataset.info
        self._count = len(dataset)

    def __len__(self):
        return self._count

    def gather(self, ids):
        raise AssertionError("the examples were looked at")


class Numbered:
    """Square images that hold the position they stand at."""

    def take(self, start, count):
        positions = torch.arange(start, start + count)
        x0 = positions[:, None, None, None] + torch.arange(4.0).reshape(1, 1, 2, 2) / 10
        return Batch({"x0": x0, "label": positions}, positions % 5, positions // 5, positions)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def extractor(cache):
    return feature_extractor(halves(), cache, TINY)


def test_the_network_learns_what_it_is_for(extractor):
    assert extractor.card.pretext is Pretext.CLASSES
    assert extractor.card.accuracy.value == 1.0


def test_the_network_learns_from_its_share_and_is_tested_on_the_others(extractor):
    used, others = TINY.split(60)
    assert sorted(torch.cat([used, others]).tolist()) == list(range(60))
    assert extractor.card.examples == len(used) == 30
    assert extractor.card.accuracy.count == 30


def test_a_second_call_takes_the_network_from_the_cache_without_a_look_at_the_data(cache, extractor):
    again = feature_extractor(Unreadable(halves()), cache, TINY)
    images = halves().gather(torch.arange(10))["x0"]
    assert again.card == extractor.card
    assert torch.equal(again(images), extractor(images))


def test_changed_data_get_a_network_of_their_own(cache, extractor):
    changed = feature_extractor(halves(seed=1), cache, TINY)
    assert changed.card.fingerprint != extractor.card.fingerprint
    assert changed.card.name != extractor.card.name


def test_another_configuration_gets_a_network_of_its_own(cache, extractor):
    other = feature_extractor(halves(), cache, dataclasses.replace(TINY, seed=1))
    assert other.card.sha256 != extractor.card.sha256


def test_the_same_data_and_configuration_give_the_same_weights(tmp_path, extractor):
    assert feature_extractor(halves(), tmp_path, TINY).card == extractor.card


def test_the_name_says_where_the_features_are_from_and_is_no_published_metric(extractor):
    assert extractor.card.name == f"unfog-features-toy-set-{extractor.card.sha256[:8]}"
    assert "fid" not in extractor.card.name.lower()


def test_a_card_survives_json(extractor):
    assert FeatureCard.from_dict(json.loads(json.dumps(extractor.card.to_dict()))) == extractor.card


def test_each_row_is_the_feature_of_its_image(extractor):
    images = halves().gather(torch.arange(12))["x0"]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    # float32 convolutions; the features are of order one.
    assert torch.allclose(extractor(images[order]), extractor(images)[order], atol=1e-5)
    assert extractor(images).shape == (12, 8)


def test_floats_and_their_pixels_have_the_same_features(extractor):
    pixels = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(extractor(to_float(pixels)), extractor(pixels))


def test_features_of_a_data_set_are_those_of_its_images(extractor):
    ids = torch.tensor([5, 2, 9])
    assert torch.equal(extractor.of(halves(), ids), extractor(halves().gather(ids)["x0"]))


def test_images_with_other_channels_are_refused(extractor):
    with pytest.raises(ValueError, match=r"1 channels for unfog-features-toy-set.*got 3"):
        extractor(torch.zeros(2, 3, 8, 8))


def test_damaged_weights_are_refused(tmp_path):
    feature_extractor(halves(), tmp_path, TINY)
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="delete it"):
        load_extractor(path)


def test_a_card_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / "f.json").write_text('{"name": "unfog"}')
    with pytest.raises(DamagedCheckpointError, match="no feature card"):
        load_extractor(tmp_path / "f.safetensors")


def test_without_labels_the_network_learns_to_tell_rotations_apart(tmp_path):
    dataset = ArrayDataset(halves().gather(torch.arange(0, 60, 2))["x0"].add(1).mul(127.5).byte().numpy(), name="toy")
    card = feature_extractor(dataset, tmp_path, dataclasses.replace(TINY, share=0.7)).card
    assert card.pretext is Pretext.ROTATIONS
    # Bright on one side of four: learned completely, where guessing gives a quarter.
    assert card.accuracy.value == 1.0


def test_without_labels_and_not_square_it_learns_to_tell_mirrorings_apart(tmp_path):
    # Bright in one corner of four: learned completely, where guessing gives a quarter.
    pixels = np.random.default_rng(0).integers(0, 80, (60, 1, 8, 12), dtype=np.uint8)
    pixels[:, :, :4, :6] += 150
    card = feature_extractor(ArrayDataset(pixels, name="toy"), tmp_path, TINY).card
    assert card.pretext is Pretext.MIRRORINGS
    assert card.accuracy.value == 1.0


@pytest.mark.parametrize(
    ("count", "size", "words"),
    [(1, (8, 8), "learns from 2 training examples"), (2, (8, 8), "of 2 in all"), (60, (4, 9), "these are 4 x 9")],
)
def test_where_no_network_can_be_made_it_is_said_why(count, size, words, tmp_path):
    dataset = halves(count, size=size)
    assert words in obstacle(dataset)
    with pytest.raises(ValueError, match=words):
        feature_extractor(dataset, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_three_examples_are_enough(tmp_path):
    dataset = halves(3)
    assert obstacle(dataset, TINY) is None
    assert feature_extractor(dataset, tmp_path, TINY)(halves(2).gather(torch.arange(2))["x0"]).isfinite().all()


def test_four_quarter_turns_lead_back():
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    turns = torch.tensor([0, 1, 2, 3])
    assert torch.equal(turn(turn(x, turns), (4 - turns) % 4), x)
    assert not torch.equal(turn(x, turns)[1], x[1])


def test_the_mirrorings_are_four_and_each_undoes_itself():
    x = torch.randn(4, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    ways = torch.arange(4)
    assert torch.equal(mirror(mirror(x, ways), ways), x)
    same = mirror(x[:1].expand(4, -1, -1, -1), ways)
    assert len({tuple(image.flatten().tolist()) for image in same}) == 4


def test_each_example_stands_at_four_positions_under_four_turns():
    batch = Variants(Numbered(), turn).take(8, 8)
    assert batch.values["label"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch.values["x0"].amin((1, 2, 3)).tolist() == [2, 2, 2, 2, 3, 3, 3, 3]
    assert batch.ids.tolist() == [2, 2, 2, 2, 3, 3, 3, 3]


def test_turned_batches_are_a_pure_function_of_the_position():
    batches = Variants(Numbered(), turn)
    whole, part = batches.take(0, 24), batches.take(5, 9)
    assert torch.equal(part.values["x0"], whole.values["x0"][5:14])
    assert torch.equal(part.positions, torch.arange(5, 14))
    assert torch.equal(part.epochs, whole.epochs[5:14])


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"limit": 1}, {"shift": 1.0}])
def test_configurations_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeatureConfig(**wrong)
