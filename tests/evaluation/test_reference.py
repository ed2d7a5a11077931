import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from unfog.checkpoint import DamagedCheckpointError
from unfog.data.dataset import ArrayDataset
from unfog.evaluation.card import ExtractorCard
from unfog.evaluation.extractors import of_module
from unfog.evaluation.image_scores import Yardstick
from unfog.evaluation.reference import Remembering, reference_statistics
from unfog.metrics.frechet import Moments, frechet_distance
from unfog.metrics.interval import Score

CARD = ExtractorCard("toy", "", "none", "x / 255", "3")


class Corners(nn.Module):
    """Features are four pixels."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x[:, 0, ::3, ::3].flatten(1)


def dataset(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ArrayDataset(torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator).numpy())


def extractor(**changes):
    return of_module(Corners().eval(), lambda pixels: pixels / 255, replace(CARD, **changes))


def test_statistics_are_those_of_all_examples(tmp_path):
    data, made = dataset(), extractor()
    found = reference_statistics(data, made, tmp_path)
    expected = Moments.of(made.of(data))
    torch.testing.assert_close(found.moments.covariance, expected.covariance)
    torch.testing.assert_close(found.features, made.of(data))
    assert found.whole
    assert found.moments.count == 60


def test_a_choice_of_very_many_is_kept_but_the_moments_are_of_all(tmp_path):
    data, made = dataset(), extractor()
    found = reference_statistics(data, made, tmp_path, kept=20)
    assert not found.whole
    assert found.moments.count == 60
    torch.testing.assert_close(found.features, made.of(data)[found.ids])


def test_statistics_are_computed_once(tmp_path):
    data, made = dataset(), extractor()
    first = reference_statistics(data, made, tmp_path)
    calls = made.network.calls
    again = reference_statistics(data, made, tmp_path)
    assert made.network.calls == calls
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.moments.covariance, again.moments.covariance)
    assert again.moments.count == first.moments.count


@pytest.mark.parametrize(
    ("data", "changes"),
    [(dataset(seed=1), {}), (dataset(59), {}), (dataset(), {"resize": "other"}), (dataset(), {"name": "other"})],
)
def test_other_data_or_another_preparation_never_meet_old_statistics(tmp_path, data, changes):
    reference_statistics(dataset(), extractor(), tmp_path)
    made = extractor(**changes)
    reference_statistics(data, made, tmp_path)
    assert made.network.calls > 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove", "garble"])
def test_damaged_statistics_are_refused(tmp_path, damage):
    reference_statistics(dataset(), extractor(), tmp_path)
    (file,), (told,) = tmp_path.glob("*.safetensors"), tmp_path.glob("*.json")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "shorten":
        file.write_bytes(content[:-8])
    elif damage == "remove":
        file.unlink()
    else:
        told.write_text(json.dumps({**json.loads(told.read_text()), "count": "many"}))
    with pytest.raises(DamagedCheckpointError, match=r"delete .* to have the statistics computed anew"):
        reference_statistics(dataset(), extractor(), tmp_path)


def test_an_extractor_remembers_whole_data_sets(tmp_path):
    data, made = dataset(), extractor()
    remembering = Remembering(made, tmp_path)
    ids = torch.tensor([5, 2])
    torch.testing.assert_close(remembering.of(data, ids), made.of(data, ids))
    calls = made.network.calls
    torch.testing.assert_close(remembering.of(data)[ids], remembering.of(data, ids))
    assert made.network.calls == calls
    assert remembering.identity == made.identity
    assert remembering.logits(torch.zeros(1)) is None


def test_pictures_are_scored_against_all_real_ones(tmp_path):
    data, others, made = dataset(), dataset(50, seed=1), extractor()
    found = Yardstick.of(data, made, tmp_path).score(others)
    expected = frechet_distance(Moments.of(made.of(data)), Moments.of(made.of(others)))
    assert found.scores.frechet.value == pytest.approx(expected, abs=1e-9)
    assert (found.card.count, found.card.reference_count) == (50, 60)
    assert found.card.reference == data.info.fingerprint
    assert isinstance(found.scores.limit, Score)
    assert json.loads(json.dumps(found.to_dict()))["scores"]["frechet"]["count"] == 50


def test_fewer_pictures_are_a_choice_that_the_seed_makes(tmp_path):
    stick = Yardstick.of(dataset(), extractor(), tmp_path)
    first, again, other = (stick.score(dataset(50, seed=1), count=40, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.scores.frechet.value != other.scores.frechet.value
    assert first.card.count == 40
    with pytest.raises(ValueError, match="1 to 50"):
        stick.score(dataset(50, seed=1), count=51)
