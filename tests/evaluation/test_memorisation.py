import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.near_copies import measured, planted

from unfog.data.dataset import ArrayDataset, to_uint8
from unfog.data.sources import DataSpec, open_dataset, open_parts
from unfog.evaluation.memorisation import PICTURES, Features, memorisation

CIFAR10 = Path(os.environ.get("UNFOG_DATA", "data")) / "cifar10"


@pytest.fixture(scope="module")
def digits():
    """Digits to train on, to calibrate with, and pixels of others that stand for samples."""
    parts = open_parts(DataSpec("digits"), 0.2)
    pixels = torch.cat([to_uint8(part.gather(torch.arange(len(part)))["x0"]) for part in parts])
    pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    train, calibration = (ArrayDataset(some.numpy(), name="digits") for some in (pixels[:800], pixels[800:1400]))
    return train, calibration, pixels[1400:]


def test_planted_near_copies_of_digits_are_found_among_new_ones(digits):
    train, calibration, fresh = digits
    sources = torch.arange(0, 400)
    copies = planted(to_uint8(train.gather(sources)["x0"]), seed=0)
    found = memorisation(torch.cat([fresh, copies]), train, calibration)
    (view,) = found.views
    flagged = {one.sample: one.training for one in view.suspects}
    right = sum(flagged.get(len(fresh) + k) == source for k, source in enumerate(sources.tolist()))
    assert right / len(sources) >= 0.99
    # Of 397 new digits 1 % may be flagged: 4, with a standard error of 2, and the calibration adds 1.6.
    assert len(fresh) == 397
    assert sum(sample < len(fresh) for sample in flagged) <= 11


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.exists(), reason="CIFAR-10 is not in $UNFOG_DATA")
def test_planted_near_copies_of_photographs_are_found_among_new_ones():
    train, test = (open_dataset(DataSpec(str(CIFAR10), split=split)) for split in ("train", "test"))
    found = measured(train, test, seed=0)
    assert found.planted.value >= 0.99
    assert all(kind.value >= 0.99 for kind in found.kinds.values())
    # 1 % of 5,000 with a standard error of 0.14 % and that of the calibration, as large.
    assert 0.006 <= found.false_positives.value <= 0.014


def test_new_pictures_are_no_more_than_chance(digits):
    train, calibration, fresh = digits
    (view,) = memorisation(fresh, train, calibration).views
    assert not view.beyond_chance
    assert view.name == PICTURES
    assert view.flagged.count == len(fresh)


def test_a_model_that_copies_is_more_than_chance_and_its_suspects_are_surely_copies(digits):
    train, calibration, fresh = digits
    samples = torch.cat([fresh[:150], to_uint8(train.gather(torch.arange(50))["x0"])])
    (view,) = memorisation(samples, train, calibration).views
    assert view.beyond_chance
    assert {one.sample for one in view.suspects[:50]} == set(range(150, 200))
    assert all(one.false_discovery < 0.05 for one in view.suspects[:50])


def test_pictures_and_features_share_the_level(digits):
    train, calibration, fresh = digits
    features = Features("means of rows", lambda pixels: pixels.float().mean(-1).flatten(1))
    found = memorisation(fresh, train, calibration, level=0.02, features=features)
    assert [view.name for view in found.views] == [PICTURES, "means of rows"]
    # Half the level each, of 600 held-out examples: the sixth of them.
    assert all(view.false_positives.value == pytest.approx(6 / 601) for view in found.views)


def test_the_result_goes_into_json_and_is_the_same_each_time(digits):
    train, calibration, fresh = digits
    first, second = (memorisation(fresh[:50], train, calibration) for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first.to_dict()))["views"][0]["threshold"] == first.views[0].threshold


def test_samples_of_another_shape_are_refused(digits):
    train, calibration, _ = digits
    with pytest.raises(ValueError, match="samples shaped like the training set's"):
        memorisation(torch.zeros(3, 1, 9, 9, dtype=torch.uint8), train, calibration)


def test_too_few_held_out_examples_for_the_level_are_refused(digits):
    train, _, fresh = digits
    few = ArrayDataset(np.asarray(fresh[:20]))
    with pytest.raises(ValueError, match="needs 99 held-out examples"):
        memorisation(fresh[20:], train, few)
