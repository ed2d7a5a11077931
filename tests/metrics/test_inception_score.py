import pytest
import torch

from unfog.metrics.inception_score import inception_score


def logits(count, classes=6, seed=0):
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def test_sure_and_evenly_spread_answers_score_nearly_the_number_of_classes():
    score = inception_score(100 * torch.eye(5).repeat(200, 1), seed=0, splits=2)
    # A random split of 500 does not hold exactly a fifth of each class: the entropy is short by 4 / (2 * 500) or so.
    assert 4.95 < score.value <= 5


def test_answers_that_do_not_depend_on_the_sample_score_one():
    assert inception_score(logits(1).repeat(30, 1), seed=0, splits=3).value == pytest.approx(1, abs=1e-9)


def test_the_score_is_the_definition_split_by_split():
    answers = logits(10)
    expected = []
    for part in torch.randperm(10, generator=torch.Generator().manual_seed(3)).tensor_split(3):
        p = answers[part].double().softmax(1)
        expected.append(float((p * (p / p.mean(0)).log()).sum(1).mean().exp()))
    assert inception_score(answers, seed=3, splits=3).value == pytest.approx(sum(expected) / 3, abs=1e-12)


def test_the_score_agrees_with_torchmetrics_on_the_same_logits_and_order():
    from torchmetrics.image.inception import InceptionScore

    with pytest.warns(UserWarning, match="memory footprint"):
        peer = InceptionScore(feature=torch.nn.Identity(), splits=4)
    answers = logits(40)
    peer.update(answers)
    with torch.random.fork_rng():
        torch.manual_seed(7)  # the peer draws its order from torch's generator, we from one with the same seed
        mean, _ = peer.compute()
    assert inception_score(answers, seed=7, splits=4).value == pytest.approx(float(mean), abs=1e-4)


def test_the_order_of_the_samples_is_dealt_by_the_seed():
    answers = logits(40)
    assert inception_score(answers, seed=0) == inception_score(answers, seed=0)
    assert inception_score(answers, seed=0).value != inception_score(answers, seed=1).value


@pytest.mark.parametrize(
    ("given", "splits", "message"),
    [
        (logits(3), 4, "splits of 3 samples"),
        (logits(3), 1, "2 splits or more"),
        (logits(3)[0], 2, "finite logits"),
        (logits(3) / 0, 2, "finite logits"),
    ],
)
def test_what_cannot_be_scored_is_refused(given, splits, message):
    with pytest.raises(ValueError, match=message):
        inception_score(given, seed=0, splits=splits)
