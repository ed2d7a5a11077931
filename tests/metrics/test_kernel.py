import pytest
import torch

from unfog.metrics.kernel import kernel_distance, kernel_score


def normal(count, dim=3, seed=0, shift=0.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_the_distance_is_the_definition_pair_by_pair():
    real, features = normal(5), normal(4, seed=1)

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within = [
        sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / n / (n - 1)
        for a, n in ((real, 5), (features, 4))
    ]
    between = sum(k(x, y) for x in real for y in features) / 20
    assert kernel_distance(real, features) == pytest.approx(sum(within) - 2 * between, abs=1e-12)


def test_the_distance_is_unbiased_for_one_distribution():
    values = torch.tensor([kernel_distance(normal(30, seed=2 * k), normal(20, seed=2 * k + 1)) for k in range(400)])
    # Three standard errors of the mean.
    assert abs(float(values.mean())) < 3 * float(values.std()) / 20


def test_the_distance_agrees_with_torchmetrics_on_the_same_features():
    from torchmetrics.image.kid import KernelInceptionDistance

    real, features = normal(50, 8).float(), normal(50, 8, seed=1, shift=0.3).float()
    with pytest.warns(UserWarning, match="memory footprint"):
        peer = KernelInceptionDistance(feature=Rows(), subsets=1, subset_size=50)
    peer.update(real, real=True)
    peer.update(features, real=False)
    # float32 against float64.
    assert kernel_distance(real, features) == pytest.approx(float(peer.compute()[0]), abs=1e-4)


class Rows(torch.nn.Module):
    """Stands for a feature network: pictures are the features already."""

    num_features = 8

    def forward(self, x):
        return x


def test_a_subset_of_everything_is_the_distance_itself():
    real, features = normal(60), normal(60, seed=1, shift=0.5)
    assert kernel_score(real, features, seed=0).value == pytest.approx(kernel_distance(real, features), abs=1e-12)


def test_the_same_seed_gives_the_same_score_and_another_one_other_subsets():
    real, features = normal(200), normal(150, seed=1)
    first, again, other = (kernel_score(real, features, seed=s, subsets=3, size=50) for s in (0, 0, 1))
    assert first == again
    assert first.value != other.value


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_the_interval_covers_the_distance_of_the_distributions(shift):
    # The truth from many examples: its error is far below the width of the intervals.
    truth = 0.0 if shift == 0 else kernel_distance(normal(4000, seed=98), normal(4000, seed=99, shift=shift))
    scores = [
        kernel_score(normal(200, seed=2 * k), normal(200, seed=2 * k + 1, shift=shift), seed=k, subsets=5, size=100)
        for k in range(100)
    ]
    # Wider than need be for one distribution; 95 % of 100 has a standard deviation of 2.2 %.
    assert sum(score.low <= truth <= score.high for score in scores) >= 88


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [(39, {}, "40 examples or more"), (50, {"subsets": 0}, "at least 1 subset"), (50, {"size": 1}, "2 examples")],
)
def test_what_cannot_be_scored_is_refused(count, arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel_score(normal(60), normal(count, seed=1), seed=0, **arguments)


def test_one_example_has_no_distance():
    with pytest.raises(ValueError, match="two examples or more"):
        kernel_distance(normal(1), normal(5))
