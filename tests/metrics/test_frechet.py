import pytest
import torch

from unfog.metrics.frechet import Moments, frechet_distance

# float64 with numbers of order one: rounding is 1e-13 at most.
TOLERANCE = 1e-9


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean, covariance, count=1000):
    return Moments(torch.tensor(mean).double(), torch.tensor(covariance).double(), count)


def test_identical_sets_are_at_distance_zero():
    moments = Moments.of(normal(50, 6))
    assert frechet_distance(moments, moments) < TOLERANCE


def test_identical_sets_of_deficient_rank_are_at_distance_zero():
    moments = Moments.of(normal(50, 3) @ normal(3, 20, seed=1))
    assert frechet_distance(moments, moments) < TOLERANCE


def test_a_translation_costs_its_squared_length():
    features, shift = normal(60, 5), torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5])
    distance = frechet_distance(Moments.of(features), Moments.of(features + shift))
    assert distance == pytest.approx(14.25, abs=TOLERANCE)


def test_commuting_covariances_have_the_closed_form():
    basis = torch.linalg.qr(normal(4, 4)).Q
    first, second = torch.tensor([1.0, 4.0, 9.0, 0.25]).double(), torch.tensor([4.0, 1.0, 0.0, 2.25]).double()
    zero = torch.zeros(4, dtype=torch.float64)
    a = Moments(zero, basis * first @ basis.T, 99)
    b = Moments(zero, basis * second @ basis.T, 99)
    expected = float((first.sqrt() - second.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=TOLERANCE)


def test_two_by_two_covariances_have_the_closed_form():
    # Tr sqrt(M) = sqrt(Tr M + 2 sqrt(det M)) for a 2x2 matrix; here Tr(S1 S2) = 6 and det(S1 S2) = 3 * 1.75.
    a = gaussian([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]])
    b = gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 2.0]])
    trace, det = 2 * 1 + 1 * 0.5 + 1 * 0.5 + 2 * 2, 3 * 1.75
    expected = 4 + 3 - 2 * (trace + 2 * det**0.5) ** 0.5
    assert frechet_distance(a, b) == pytest.approx(expected, abs=TOLERANCE)


def test_disjoint_subspaces_add_their_traces():
    # S1 S2 = 0, so nothing is saved; the worst case for roots of rounding errors.
    a = gaussian([0.0] * 4, torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0])).tolist())
    b = gaussian([0.0] * 4, torch.diag(torch.tensor([0.0, 0.0, 3.0, 4.0])).tolist())
    assert frechet_distance(a, b) == pytest.approx(10.0, abs=TOLERANCE)


def test_the_distance_is_symmetric():
    a, b = Moments.of(normal(40, 5)), Moments.of(normal(30, 5, seed=1) * 2 + 1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=TOLERANCE)


def test_the_order_of_the_examples_does_not_matter():
    features, other = normal(40, 5), Moments.of(normal(30, 5, seed=1))
    shuffled = features[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    expected = frechet_distance(Moments.of(features), other)
    assert frechet_distance(Moments.of(shuffled), other) == pytest.approx(expected, abs=TOLERANCE)


def test_a_rotation_of_both_sets_does_not_matter():
    a, b, basis = normal(40, 5), normal(30, 5, seed=1) + 1, torch.linalg.qr(normal(5, 5, seed=2)).Q
    expected = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_distance(Moments.of(a @ basis), Moments.of(b @ basis)) == pytest.approx(expected, abs=TOLERANCE)


def test_moments_are_the_mean_and_the_unbiased_covariance():
    features = normal(30, 3)
    moments = Moments.of(features)
    assert torch.allclose(moments.mean, features.mean(0), atol=1e-14)
    assert torch.allclose(moments.covariance, features.T.cov(), atol=1e-14)


def test_streamed_moments_are_those_of_all_examples():
    features = normal(50, 4) + 100
    streamed = Moments.stream(iter([features[:1], features[1:20], features[20:]]))
    whole = Moments.of(features)
    assert streamed.count == 50
    assert torch.allclose(streamed.mean, whole.mean, atol=1e-11)
    assert torch.allclose(streamed.covariance, whole.covariance, atol=1e-11)


def test_too_few_examples_for_the_dimension_are_refused_with_both_numbers():
    small, large = Moments.of(normal(8, 8)), Moments.of(normal(90, 8, seed=1))
    with pytest.raises(ValueError, match=r"8 examples in 8 dimensions.*at least 9"):
        frechet_distance(large, small)


def test_too_few_examples_are_accepted_on_request():
    small = Moments.of(normal(4, 8))
    assert frechet_distance(small, small, allow_singular=True) < TOLERANCE


def test_features_of_different_dimensions_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(Moments.of(normal(20, 3)), Moments.of(normal(20, 4)))


def test_features_that_are_not_finite_are_refused():
    features = normal(20, 3)
    features[4, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(features)


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        Moments.stream([])


class Flat(torch.nn.Module):
    """Stands for a feature network: a picture is the row of its features."""

    num_features = 8

    def forward(self, x):
        return x.flatten(1)


def test_the_distance_agrees_with_torchmetrics_on_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = normal(60, 8).float(), normal(50, 8, seed=1).float() * 2 + 1
    peer = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    peer.update(a.double(), real=True)
    peer.update(b.double(), real=False)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(float(peer.compute()), abs=1e-4)
