import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.data.dataset import ArrayDataset, Attribute
from unfog.evaluation.audit import Reader, audit, class_reader, shapes_reader
from unfog.evaluation.audit_page import AuditInputs, render, verdict_of_attribute, verdict_of_view
from unfog.evaluation.features import FeatureConfig, feature_extractor
from unfog.evaluation.memorisation import memorisation
from unfog.evaluation.scores import Missing
from unfog.metrics.interval import Score

CLASSES = ("dark", "grey", "bright")


def pictures(shares, count, seed=0):
    """Pictures of one grey level with noise: class k has level 40, 120 or 200."""
    rng = np.random.default_rng(seed)
    label = rng.choice(len(shares), count, p=shares)
    pixels = (40 + 80 * label[:, None, None, None] + rng.integers(-20, 20, (count, 1, 8, 8))).astype(np.uint8)
    return pixels, label


def dataset(shares, count, seed=0):
    pixels, label = pictures(shares, count, seed)
    return ArrayDataset(pixels, label, name="levels", classes=CLASSES)


def by_level(wrong=0.0):
    """A reader of the level that takes a share of the bright ones for grey, by their first pixel."""

    def read(pixels):
        level = ((pixels.float().mean((1, 2, 3)) - 40) / 80).round().long()
        slip = (level == 2) & (pixels[:, 0, 0, 0] < 180 + 40 * wrong)
        return torch.where(slip, 1, level)[:, None]

    return Reader("the level", (Attribute("level", CLASSES),), read, trained=wrong > 0)


def test_the_same_shares_are_no_more_than_chance():
    data = dataset((0.5, 0.3, 0.2), 600)
    samples = torch.from_numpy(pictures((0.5, 0.3, 0.2), 500, seed=1)[0])
    (found,) = audit(samples, data, by_level(), labelled=True, resamples=20).attributes
    assert found.adjusted > 0.05
    assert not any(value.marked for value in found.values)
    assert isinstance(found.real_agreement, Score)
    assert found.real_agreement.value == 1
    assert "do not differ" in verdict_of_attribute(found)


def test_a_class_that_is_amplified_and_one_that_is_gone_are_marked():
    data = dataset((0.5, 0.25, 0.25), 600)
    samples = torch.from_numpy(pictures((0.75, 0.25), 500, seed=1)[0])
    (found,) = audit(samples, data, by_level(), labelled=True, resamples=20).attributes
    assert found.adjusted < 0.01
    assert [value.marked for value in found.values] == [True, False, True]
    assert found.unseen == ("bright",)
    assert found.amplification.low > 0.1
    # Half of |0.75 - 0.5| + |0.25 - 0.25| + 0.25, with standard errors of 0.02 for each share.
    assert found.variation.value == pytest.approx(0.25, abs=0.06)
    assert "dark and bright" in verdict_of_attribute(found)


def test_the_reader_s_confusion_is_corrected_for():
    data = dataset((0.4, 0.3, 0.3), 1500)
    samples = torch.from_numpy(pictures((0.2, 0.1, 0.7), 1000, seed=1)[0])
    (found,) = audit(samples, data, by_level(0.25), labelled=True, resamples=20).attributes
    bright = found.values[2]
    # The reader takes a quarter of the bright ones for grey.
    assert bright.samples.value < 0.6
    assert isinstance(bright.corrected, Score)
    assert bright.corrected.value == pytest.approx(0.7, abs=0.05)
    assert isinstance(bright.truth, Score)
    assert bright.truth.value == pytest.approx(0.3, abs=0.04)


def test_what_was_asked_for_is_compared_with_what_is_read():
    data = dataset((0.4, 0.3, 0.3), 200)
    pixels, label = pictures((0.4, 0.3, 0.3), 100, seed=1)
    wanted = torch.from_numpy(label).clone()
    wanted[:10] = (wanted[:10] + 1) % 3
    (found,) = audit(torch.from_numpy(pixels), data, by_level(), wanted=wanted, resamples=20).attributes
    assert isinstance(found.agreement, Score)
    assert found.agreement.value == pytest.approx(0.9)


def test_rare_values_are_counted():
    data = dataset((0.6, 0.36, 0.04), 1000)
    samples = torch.from_numpy(pictures((0.6, 0.4), 300, seed=1)[0])
    (found,) = audit(samples, data, by_level(), resamples=20).attributes
    assert isinstance(found.rare, Score)
    assert (found.rare.value, found.rare.count) == (0, 1)
    assert found.expected_rare > 0.999
    even = audit(samples, dataset((0.4, 0.3, 0.3), 300), by_level(), resamples=20).attributes[0]
    assert isinstance(even.rare, Missing)


def test_p_values_of_several_attributes_are_adjusted():
    def read(pixels):
        level = ((pixels.float().mean((1, 2, 3)) - 40) / 80).round().long()
        return torch.stack([level, (pixels[:, 0, 0, 0] % 2).long()], 1)

    reader = Reader("two things", (Attribute("level", CLASSES), Attribute("parity", ("even", "odd"))), read)
    samples = torch.from_numpy(pictures((0.3, 0.3, 0.4), 300, seed=1)[0])
    first, second = audit(samples, dataset((0.5, 0.3, 0.2), 300), reader, resamples=20).attributes
    assert first.adjusted == pytest.approx(2 * first.p_value)
    assert second.adjusted == second.p_value


def test_a_value_that_the_reader_does_not_know_is_counted_as_none():
    reader = Reader("nobody", (Attribute("level", CLASSES),), lambda pixels: torch.full((len(pixels), 1), 3))
    samples = torch.from_numpy(pictures((1.0,), 20)[0])
    (found,) = audit(samples, dataset((0.5, 0.3, 0.2), 50), reader, resamples=20).attributes
    assert [value.name for value in found.values] == [*CLASSES, "none"]
    assert isinstance(found.values[0].ratio, Missing)


@pytest.mark.parametrize("answer", [torch.zeros(20, 2, dtype=torch.int64), torch.zeros(20, 1), torch.full((20, 1), 4)])
def test_a_reader_that_answers_otherwise_than_it_says_is_refused(answer):
    reader = Reader("a liar", (Attribute("level", CLASSES),), lambda pixels: answer[: len(pixels)])
    with pytest.raises(ValueError, match="a liar"):
        audit(torch.from_numpy(pictures((1.0,), 20)[0]), dataset((0.5, 0.3, 0.2), 50), reader)


def test_the_classifier_behind_a_feature_network_reads_classes(toy_dataset, effort, tmp_path):
    train = toy_dataset(60, 0)
    extractor = feature_extractor(train, tmp_path, effort.features)
    reader = class_reader(extractor, train.info.classes)
    assert reader.attributes[0].values == ("left & top", "right")
    assert reader.read(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 1)
    turned = feature_extractor(train, tmp_path, FeatureConfig(budget=effort.features.budget, use_labels=False))
    assert isinstance(class_reader(turned, train.info.classes), Missing)


def test_shapes_are_read_by_their_checker():
    from unfog.data.sources import DataSpec, open_dataset

    data = open_dataset(DataSpec("shapes", size=32, limit=120, split="test"))
    reader = shapes_reader()
    samples = data.gather(torch.arange(60))["x0"]
    found = audit(samples, data, reader, resamples=20)
    assert [one.name for one in found.attributes][:3] == ["count", "background", "colour of the upper left object"]
    assert all(one.adjusted > 0.05 for one in found.attributes)


def test_the_page_tells_what_was_found_and_loads_nothing(toy_dataset):
    train, test = toy_dataset(200, 0), toy_dataset(200, 1)
    copies = train.gather(torch.arange(6))["x0"]
    samples = ((torch.cat([copies, test.gather(torch.arange(40))["x0"]]) + 1) * 127.5).round().to(torch.uint8)
    sides = Reader(
        "<sides>",
        (Attribute("side", ("left & top", "right")),),
        lambda pixels: (pixels[..., 4:].float().mean((1, 2, 3)) > pixels[..., :4].float().mean((1, 2, 3))).long()[
            :, None
        ],
    )
    found = memorisation(samples, train, test)
    told = audit(samples, test, sides, labelled=True, resamples=20)
    page = render(AuditInputs("A <title>", "unfog audit x", {"Model": "m"}, samples, train, found, told))
    assert "<title>A &lt;title&gt;</title>" in page
    assert "&lt;sides&gt;" in page
    assert "left &amp; top" in page
    assert verdict_of_view(found.views[0]) in page
    assert "sample 0" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert json.loads(json.dumps(told.to_dict()))["reader"] == "<sides>"
    nothing = Missing("it was not asked for")
    without = render(AuditInputs("t", "c", {}, samples, train, nothing, nothing))
    assert without.count("it was not asked for") == 2


def test_the_examples_of_the_guide_run(capsys):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "audit.md").read_text(encoding="utf-8")
    copies, shares = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    exec(copies, {})
    assert capsys.readouterr().out.split() == ["20", "1.0"]
    exec(shares, {})
    assert capsys.readouterr().out.startswith("p = ")
