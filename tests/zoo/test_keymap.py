from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unfog.zoo.keymap import (
    Entry,
    Form,
    KeyMapError,
    as_bits,
    as_it_is,
    by_head,
    computed,
    copies,
    differences,
    entry,
    from_published,
    halves_swapped,
    innermost,
    layer,
    left_out,
    one_hot_layer,
    pointwise,
    published_shapes,
    stacked,
    to_published,
    without_null,
)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape)


def table(rows: int, features: int) -> Tensor:
    """A table of classes whose last row, the null, is zero."""
    return torch.cat([numbers(rows - 1, features), torch.zeros(1, features)])


@pytest.mark.parametrize(
    ("form", "make", "shapes"),
    [
        (as_it_is(), lambda: numbers(3, 2), [(3, 2)]),
        (pointwise(2), lambda: numbers(3, 2), [(3, 2, 1, 1)]),
        (pointwise(1), lambda: numbers(3), [(3,)]),
        (stacked(3), lambda: numbers(6, 2), [(2, 2)] * 3),
        (stacked(3, 2), lambda: numbers(6, 2), [(2, 2, 1, 1)] * 3),
        (stacked(3, 2), lambda: numbers(6), [(2,)] * 3),
        (by_head(2), lambda: numbers(12, 4), [(12, 4)]),
        (by_head(2, 1), lambda: numbers(12, 4), [(12, 4, 1)]),
        (by_head(2, 1), lambda: numbers(12), [(12,)]),
        (innermost(2), lambda: numbers(12, 4), [(12, 4, 1, 1)]),
        (innermost(2), lambda: numbers(12), [(12,)]),
        (halves_swapped(1), lambda: numbers(3, 4), [(3, 4)]),
        (copies(3), lambda: numbers(3, 4), [(3, 4)] * 3),
        (without_null(), lambda: table(5, 4), [(4, 4)]),
        (without_null(turned=True), lambda: table(5, 3), [(3, 4)]),
        (as_bits(), lambda: numbers(4).view(torch.int32), [(4,)]),
    ],
)
def test_every_form_goes_there_and_back_bit_for_bit(
    form: Form, make: Callable[[], Tensor], shapes: list[tuple[int, ...]]
) -> None:
    ours = make()
    theirs = form.to_theirs([ours])
    assert [tuple(tensor.shape) for tensor in theirs] == shapes
    (back,) = form.to_ours(theirs)
    assert torch.equal(back, ours)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_table_is_a_layer_on_one_hot_vectors_and_the_null_its_bias(scaled: bool, swapped: bool) -> None:
    form = one_hot_layer(scaled=scaled, swapped=swapped)
    weight, bias = numbers(6, 4), numbers(6)
    (rows,) = form.to_ours([weight, bias])
    vectors = torch.cat([torch.eye(4) * (2.0 if scaled else 1.0), torch.zeros(1, 4)])  # 2 = sqrt(4)
    answers = vectors @ weight.T + bias
    expected = torch.cat([answers[:, 3:], answers[:, :3]], dim=1) if swapped else answers
    torch.testing.assert_close(rows, expected)
    for tensor, given in zip(form.to_theirs([rows]), (weight, bias), strict=True):
        torch.testing.assert_close(tensor, given)


def test_rows_by_head_are_a_head_s_queries_keys_and_values_in_turn() -> None:
    ours = torch.tensor(
        [
            f"{part}{head}{row}".encode()[0] * 100 + 10 * head + row
            for part in "qkv"
            for head in (0, 1)
            for row in (0, 1)
        ]
    )
    (theirs,) = by_head(2).to_theirs([ours])
    expected = [ord(part) * 100 + 10 * head + row for head in (0, 1) for part in "qkv" for row in (0, 1)]
    assert theirs.tolist() == expected


def test_innermost_rows_are_a_feature_s_query_key_and_value() -> None:
    (theirs,) = innermost().to_theirs([torch.arange(6)])
    assert theirs.tolist() == [0, 2, 4, 1, 3, 5]


NETWORK = {"a.weight": torch.zeros(2, 2), "a.bias": torch.zeros(2), "b": torch.zeros(3)}
KEYMAP = (
    *layer("a", "first", pointwise(2)),
    entry("b", ["b.0", "b.1"], copies(2)),
    Entry((), ("filter",), computed(torch.ones(2), 1e-6)),
    Entry((), ("rest",), left_out((4,)), "is of no use"),
)


def a_file() -> dict[str, Tensor]:
    ours = {"a.weight": numbers(2, 2), "a.bias": numbers(2), "b": numbers(3)}
    return to_published(KEYMAP, ours)


def test_a_file_holds_what_the_map_says() -> None:
    assert published_shapes(KEYMAP, NETWORK) == {
        "first.weight": (2, 2, 1, 1),
        "first.bias": (2,),
        "b.0": (3,),
        "b.1": (3,),
        "filter": (2,),
        "rest": (4,),
    }


def test_a_file_is_read_into_the_shapes_and_dtypes_of_the_network() -> None:
    found = a_file()
    read = from_published(KEYMAP, {name: tensor.double() for name, tensor in found.items()}, NETWORK)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in read.items()} == {
        name: (tensor.shape, torch.float32) for name, tensor in NETWORK.items()
    }
    assert torch.equal(read["a.weight"], found["first.weight"].flatten(1))


def test_half_precision_is_read_exactly() -> None:
    found = {name: tensor.half() for name, tensor in a_file().items()}
    assert torch.equal(from_published(KEYMAP, found, NETWORK)["b"], found["b.0"].float())


def test_a_missing_an_extra_and_a_misshapen_tensor_are_all_told() -> None:
    found = a_file()
    del found["b.1"]
    found["first.bias"], found["extra"] = numbers(3), numbers(1)
    with pytest.raises(KeyMapError) as error:
        from_published(KEYMAP, found, NETWORK)
    told = "1 missing: b.1; 1 unexpected: extra; 1 of another shape: first.bias is (3,), not (2,)"
    assert str(error.value) == told


def test_of_many_differences_the_first_are_told() -> None:
    (told,) = differences({f"k{i}": (1,) for i in range(7)}, {})
    assert told == "7 missing: k0, k1, k2, k3, k4, ..."


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("b.1", torch.ones(3), "b.0: copy 1 differs"),
        ("filter", torch.tensor([1.0, 1.01]), "filter: it differs from what is computed here by 0.01"),
        ("filter", torch.tensor([1.0, torch.nan]), "filter holds numbers that are not finite"),
        ("b.0", torch.tensor([1.0, torch.inf, 0.0]), "b.0 holds numbers that are not finite"),
        ("first.bias", torch.tensor([1, 2]), "first.bias is torch.int64; expected floating-point"),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, value: Tensor, words: str) -> None:
    with pytest.raises(KeyMapError, match=words):
        from_published(KEYMAP, {**a_file(), name: value}, NETWORK)


@pytest.mark.parametrize(
    ("keymap", "name"),
    [
        (KEYMAP[1:], "a.weight"),
        ((*KEYMAP, entry("b", "c")), "b"),
        ((*KEYMAP, Entry((), ("rest",), left_out((4,)))), "rest"),
    ],
)
def test_a_map_that_does_not_have_each_tensor_once_is_a_fault(keymap: tuple[Entry, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"each tensor once, which is not so of {name}"):
        published_shapes(keymap, NETWORK)
