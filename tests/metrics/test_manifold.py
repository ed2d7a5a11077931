import pytest
import torch

from unfog.metrics.manifold import density_coverage, expected_coverage, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(real, samples, k):
    """Balls of the definition, from all distances at once: (samples, real) booleans."""
    within = (real[:, None] - real[None]).norm(dim=2).sort(1).values[:, k]
    return (samples[:, None] - real[None]).norm(dim=2) <= within


def test_identical_sets_have_precision_and_recall_one():
    features = normal(40, 3)
    scores = precision_recall(features, features)
    assert (scores.precision.value, scores.recall.value) == (1.0, 1.0)


def test_identical_sets_with_repeated_examples_have_precision_and_recall_one():
    # Four copies of each: every ball has radius zero, so a rounding error would put all examples outside.
    features = normal(10, 7).mul(1000).repeat(4, 1)
    scores = precision_recall(features, features)
    assert (scores.precision.value, scores.recall.value) == (1.0, 1.0)


def test_sets_far_apart_have_precision_and_recall_zero():
    scores = precision_recall(normal(30, 3), normal(30, 3, seed=1) + 100)
    assert (scores.precision.value, scores.recall.value) == (0.0, 0.0)


def test_one_repeated_realistic_sample_has_full_precision_and_hardly_any_recall():
    real = normal(40, 3)
    samples = real[:1].repeat(40, 1)
    scores = precision_recall(real, samples)
    assert (scores.precision.value, scores.recall.value) == (1.0, 1 / 40)


def test_precision_and_recall_follow_the_definition():
    real, samples = normal(30, 3), normal(25, 3, seed=1) * 1.5
    scores = precision_recall(real, samples, k=2, chunk=7)
    assert scores.precision.value == brute_force(real, samples, 2).any(1).double().mean()
    assert scores.recall.value == brute_force(samples, real, 2).any(1).double().mean()


def test_exchanging_the_sets_exchanges_precision_and_recall():
    a, b = normal(30, 3), normal(30, 3, seed=1) * 1.5
    forward, backward = precision_recall(a, b), precision_recall(b, a)
    assert forward.precision.value == backward.recall.value


def test_the_order_of_the_examples_does_not_matter():
    real, samples = normal(30, 3), normal(30, 3, seed=1) * 1.5
    assert precision_recall(real, samples) == precision_recall(real.flip(0), samples.flip(0))


def test_density_and_coverage_follow_the_definition():
    real, samples = normal(30, 3), normal(25, 3, seed=1) * 1.5
    scores = density_coverage(real, samples, k=4, chunk=7)
    balls = brute_force(real, samples, 4).double()
    assert scores.density.value == pytest.approx(float(balls.sum(1).mean() / 4), abs=1e-12)
    assert scores.coverage.value == float(balls.any(0).double().mean())


def test_identical_sets_have_density_of_k_plus_one_over_k():
    features = normal(40, 3)
    assert density_coverage(features, features, k=5).density.value == pytest.approx(6 / 5, abs=1e-12)


def test_samples_of_the_same_distribution_have_density_one_and_the_expected_coverage():
    density, coverage = [], []
    for trial in range(40):
        scores = density_coverage(normal(30, 2, seed=2 * trial), normal(20, 2, seed=2 * trial + 1), k=3)
        density.append(scores.density.value)
        coverage.append(scores.coverage.value)
    # Means of 40 trials with spreads of about 0.25 and 0.08: four standard errors.
    assert sum(density) / 40 == pytest.approx(1.0, abs=0.16)
    assert sum(coverage) / 40 == pytest.approx(expected_coverage(30, 20, 3), abs=0.05)


def test_as_few_examples_as_neighbours_are_refused():
    with pytest.raises(ValueError, match="set of 4 examples or more; got 3"):
        precision_recall(normal(3, 2), normal(9, 2))
