import pytest
import torch

from unfog.metrics.neighbours import copying, nearest_neighbours, squared_distances


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunks", [(1024, 4096), (7, 5), (1, 1)])
def test_neighbours_agree_with_sorting_all_distances_at_any_chunk_size(chunks):
    queries, points = normal(23, 4), normal(31, 4, seed=1)
    found = nearest_neighbours(queries, points, 4, query_chunk=chunks[0], point_chunk=chunks[1])
    distances = (queries[:, None] - points[None]).norm(dim=2)
    values, indices = distances.sort(1)
    assert torch.equal(found.indices, indices[:, :4])
    assert torch.allclose(found.distances, values[:, :4], atol=1e-12)


def test_planted_copies_are_found_at_distance_zero():
    points = torch.randint(0, 256, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    planted = [3, 41, 17]
    found = nearest_neighbours(points[planted], points, 1, point_chunk=8)
    assert found.indices[:, 0].tolist() == planted
    assert found.distances.max() == 0


def test_no_row_is_its_own_neighbour_when_self_is_excluded():
    points = normal(20, 3)
    found = nearest_neighbours(points, points, 19, exclude_self=True, query_chunk=6, point_chunk=7)
    assert not (found.indices == torch.arange(20)[:, None]).any()
    assert all(len(set(row)) == 19 for row in found.indices.tolist())


def test_a_far_away_origin_does_not_spoil_the_distances():
    queries, points = normal(10, 3), normal(12, 3, seed=1)
    here, there = (nearest_neighbours(queries + shift, points + shift, 3) for shift in (0.0, 1e6))
    # 1e6 with 1e-16 relative rounding of the inputs themselves.
    assert torch.allclose(here.distances, there.distances, atol=1e-9)


def test_the_rounding_bound_holds():
    a, b = normal(40, 30) * 50, normal(40, 30, seed=1)
    b[:10] = a[:10] + 1e-9
    computed, bound = squared_distances(a, b)
    exact = (a[:, None] - b[None]).square().sum(2)
    assert ((computed - exact).abs() <= bound).all()


@pytest.mark.parametrize("k", [0, 6])
def test_more_neighbours_than_points_are_refused(k):
    with pytest.raises(ValueError, match="between 1 and 5"):
        nearest_neighbours(normal(2, 3), normal(5, 3), k)


def test_vectors_of_different_length_are_refused():
    with pytest.raises(ValueError, match="same trailing shape"):
        nearest_neighbours(normal(2, 3), normal(5, 4), 1)


def test_copies_of_the_training_set_are_always_nearer_than_held_out_examples():
    training = normal(40, 3)
    score = copying(training[:20], training, normal(30, 3, seed=1), seed=0, resamples=20)
    assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)


def test_held_out_examples_as_samples_are_as_near_as_held_out_examples():
    held_out = normal(30, 3, seed=1)
    score = copying(held_out, normal(40, 3), held_out, seed=0, resamples=20)
    assert score.value == pytest.approx(0.5, abs=1e-12)
