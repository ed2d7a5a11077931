import math

import pytest
import torch

from unfog.diffusion.nn.embed import AttributeTokens, Embedder, Fourier, Sinusoidal, sinusoids

IMAGES = torch.zeros(3, 1, 4, 4)
LEVELS = torch.tensor([0.0, 10.0, 999.0])


def embedder(
    time: Sinusoidal | Fourier | None = None,
    classes: int | None = None,
    vector: int | None = None,
    attributes: tuple[int, ...] = (),
) -> Embedder:
    torch.manual_seed(0)
    return Embedder(time or Sinusoidal(), 16, 8, num_classes=classes, vector_dim=vector, attributes=attributes)


@pytest.mark.parametrize("kind", [Sinusoidal(), Sinusoidal(freq_shift=1, sin_first=True)])
def test_each_frequency_contributes_a_point_on_the_unit_circle(kind: Sinusoidal) -> None:
    features = sinusoids(LEVELS.double(), 16, kind)
    radius = features[:, :8] ** 2 + features[:, 8:] ** 2
    torch.testing.assert_close(radius, torch.ones_like(radius))


def test_the_last_ddpm_frequency_is_the_longest_period() -> None:
    feature = sinusoids(torch.tensor([5000.0]).double(), 16, Sinusoidal(freq_shift=1, sin_first=True))[0, 7]
    assert feature.item() == pytest.approx(math.sin(0.5), abs=1e-12)


def test_the_adm_frequencies_stop_one_step_before_the_longest_period() -> None:
    feature = sinusoids(torch.tensor([5000.0]).double(), 16, Sinusoidal())[0, 7]
    assert feature.item() == pytest.approx(math.cos(5000 * 10000 ** (-7 / 8)), abs=1e-12)


def test_sines_and_cosines_change_places_with_the_order() -> None:
    first, second = sinusoids(LEVELS, 16, Sinusoidal()), sinusoids(LEVELS, 16, Sinusoidal(sin_first=True))
    assert torch.equal(first, second.roll(8, dims=1))


def test_neighbouring_levels_stay_apart_in_a_bfloat16_network() -> None:
    network = embedder().to(torch.bfloat16)
    levels = torch.arange(1000.0)
    features = network.expand(levels).to(torch.bfloat16)
    assert len(features.unique(dim=0)) == 1000


def test_fourier_frequencies_survive_a_cast_to_bfloat16() -> None:
    network = embedder(Fourier())
    before = network.expand(LEVELS)
    assert torch.equal(network.to(torch.bfloat16).expand(LEVELS), before)


def test_fourier_frequencies_are_part_of_the_weights() -> None:
    network, other = embedder(Fourier()), Embedder(Fourier(), 16, 8)
    other.load_state_dict(network.state_dict())
    assert torch.equal(network.expand(LEVELS), other.expand(LEVELS))


def test_fourier_frequencies_have_the_stated_scale() -> None:
    torch.manual_seed(0)
    network = Embedder(Fourier(scale=16.0), 8192, 4)
    level = torch.tensor([1e-4], dtype=torch.float64)  # phases below 0.1, so that sines are nearly linear
    frequencies = network.expand(level)[0, 4096:].asin() / (2 * math.pi * 1e-4)
    # 4096 normal draws estimate their deviation to 1.1 percent.
    assert frequencies.std().item() == pytest.approx(16.0, rel=0.05)


def test_float64_images_get_float64_phases() -> None:
    network = embedder().double()
    image = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        levels = torch.tensor([500.0, 500.0 + 1e-9], dtype=torch.float64)
        near = network(levels[0], label=None, vector=None, like=image)
        far = network(levels[1], label=None, vector=None, like=image)
    assert not torch.equal(near, far)


def test_one_level_for_all_equals_a_level_each() -> None:
    network = embedder()
    one = network(torch.tensor(10.0), label=None, vector=None, like=IMAGES)
    each = network(torch.full((3,), 10.0), label=None, vector=None, like=IMAGES)
    assert torch.equal(one, each)


def test_no_label_is_the_null_class() -> None:
    network = embedder(classes=5)
    missing = network(LEVELS, label=None, vector=None, like=IMAGES)
    null = network(LEVELS, label=torch.full((3,), 5), vector=None, like=IMAGES)
    assert torch.equal(missing, null)


def test_classes_and_vectors_change_the_embedding() -> None:
    network = embedder(classes=5, vector=2)
    label, vector = torch.tensor([0, 1, 2]), torch.randn(3, 2)
    base = network(LEVELS, label=label, vector=vector, like=IMAGES)
    other_label = network(LEVELS, label=label + 1, vector=vector, like=IMAGES)
    other_vector = network(LEVELS, label=label, vector=-vector, like=IMAGES)
    assert (base != other_label).any(dim=1).all()
    assert (base != other_vector).any(dim=1).all()


@pytest.mark.parametrize(
    ("classes", "vector_dim", "label", "vector", "message"),
    [
        (None, None, torch.zeros(3, dtype=torch.int64), None, "without classes"),
        (5, None, torch.zeros(2, dtype=torch.int64), None, "label has shape"),
        (None, None, None, torch.zeros(3, 2), "without vectors"),
        (None, 2, None, None, "needs vector"),
        (None, 2, None, torch.zeros(3, 4), "vector has shape"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(
    classes: int | None,
    vector_dim: int | None,
    label: torch.Tensor | None,
    vector: torch.Tensor | None,
    message: str,
) -> None:
    network = embedder(classes=classes, vector=vector_dim)
    with pytest.raises(ValueError, match=message):
        network(LEVELS, label=label, vector=vector, like=IMAGES)


def test_labels_that_are_not_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="expected int64"):
        embedder(classes=5)(LEVELS, label=torch.zeros(3), vector=None, like=IMAGES)


def test_noise_levels_of_16_bits_are_refused() -> None:
    with pytest.raises(TypeError, match="too coarse"):
        embedder()(LEVELS.bfloat16(), label=None, vector=None, like=IMAGES)


def test_noise_levels_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="c_noise has shape"):
        embedder()(LEVELS[:2], label=None, vector=None, like=IMAGES)


@pytest.mark.parametrize("wrong", [{"max_period": 1.0}, {"freq_shift": 2}])
def test_impossible_sinusoids_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sinusoidal(**wrong)


def test_a_fourier_scale_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="scale"):
        Fourier(scale=0.0)


def test_attributes_without_a_value_are_their_nulls() -> None:
    network = embedder(attributes=(2, 3))
    nulls = torch.tensor([[2, 3]]).expand(3, 2)
    told = network(LEVELS, label=None, vector=None, attributes=nulls, like=IMAGES)
    assert torch.equal(network(LEVELS, label=None, vector=None, like=IMAGES), told)


def test_each_value_of_each_attribute_has_an_embedding_of_its_own() -> None:
    every = [[i, j] for i in range(3) for j in range(4)]
    torch.manual_seed(0)
    network = Embedder(Sinusoidal(), 16, 8, attributes=(2, 3))
    told = network(torch.zeros(()), label=None, vector=None, attributes=torch.tensor(every), like=torch.zeros(12, 1))
    assert torch.cdist(told, told).add(torch.eye(12)).min() > 1e-3


@pytest.mark.parametrize(
    ("given", "error"),
    [(torch.zeros(3, 1, dtype=torch.int64), ValueError), (torch.zeros(3, 2), TypeError)],
)
def test_attributes_of_another_shape_or_dtype_are_refused(given: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="attributes"):
        embedder(attributes=(2, 3))(LEVELS, label=None, vector=None, attributes=given, like=IMAGES)


def test_attributes_are_refused_by_a_network_without() -> None:
    with pytest.raises(ValueError, match="set attributes in its config"):
        embedder()(LEVELS, label=None, vector=None, attributes=torch.zeros(3, 1, dtype=torch.int64), like=IMAGES)


def test_a_scale_multiplies_noise_levels_before_they_are_expanded() -> None:
    levels = torch.tensor([0.0, 4.0, 3996.0])
    assert torch.equal(sinusoids(levels, 16, Sinusoidal(scale=0.25)), sinusoids(levels / 4, 16, Sinusoidal()))
    with pytest.raises(ValueError, match="scale is 0"):
        Sinusoidal(scale=0.0)


def test_attributes_of_one_token_are_summed_and_others_are_kept_apart() -> None:
    tokens = AttributeTokens((2, 3, 2), (1, 0, 1), 8)
    given = torch.tensor([[0, 3, 1], [0, 1, 1]])
    made, mask = tokens(given, None, None, like=torch.zeros(2, 1))
    assert mask is None
    table = tokens.attribute.weight  # rows 0..2, 3..6, 7..9
    assert torch.allclose(made[:, 0], table[[6, 4]])
    assert torch.allclose(made[:, 1], ((table[0] + table[8]) / 2**0.5).expand(2, -1), atol=1e-6)


def test_a_context_follows_the_tokens_of_attributes() -> None:
    tokens = AttributeTokens((2, 3), (0, 1), 8)
    context, seen = torch.randn(2, 3, 8), torch.tensor([[True, False, True], [True, True, False]])
    made, mask = tokens(None, context, seen, like=torch.zeros(2, 1))
    assert torch.equal(made[:, 2:], context)
    assert mask is not None
    assert mask[:, :2].all()
    assert torch.equal(mask[:, 2:], seen)
    assert torch.equal(made[0, :2], tokens.attribute.weight[[2, 6]])  # the nulls


@pytest.mark.parametrize("tokens", [(0,), (0, 2), (1, 1), (-1, 0)])
def test_tokens_that_do_not_fit_the_attributes_are_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="attribute_tokens"):
        AttributeTokens((2, 3), tokens, 8)


def test_tokens_are_made_without_their_numbers() -> None:
    """As what a network costs is computed: on the meta device, which holds none."""
    with torch.device("meta"):
        tokens = AttributeTokens((2, 3, 2), (1, 0, 1), 8)
    assert tokens.get_buffer("belongs").shape == (2, 3)


def test_what_was_done_to_a_picture_is_added_before_the_perceptron() -> None:
    torch.manual_seed(0)
    told = Embedder(Sinusoidal(), 16, 8, augmentation=2)
    assert told.augmented is not None
    given = torch.tensor([[0.0, 0.0], [1.0, -0.5], [0.2, 0.3]])
    found = told(LEVELS, label=None, vector=None, augmentation=given, like=IMAGES)
    plain = told(LEVELS, label=None, vector=None, like=IMAGES)
    assert torch.equal(found[0], plain[0])  # of nothing done is nothing added
    h = told.expand(LEVELS) + given @ told.augmented.weight.T
    expected = torch.nn.functional.silu(told.time_out(torch.nn.functional.silu(told.time_in(h))))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[1:], plain[1:])


@pytest.mark.parametrize(("numbers", "words"), [(0, "set augmentation in its config"), (3, r"expected \(3, 3\)")])
def test_augmentation_that_does_not_fit_is_refused(numbers: int, words: str) -> None:
    told = Embedder(Sinusoidal(), 16, 8, augmentation=numbers)
    with pytest.raises(ValueError, match=words):
        told(LEVELS, label=None, vector=None, augmentation=torch.zeros(3, 2), like=IMAGES)
