import pytest
import torch

from unfog.asking import asked_like, classes_in_turn, condition_of, in_turn, needs_examples
from unfog.data.dataset import Dataset
from unfog.data.shapes.dataset import ShapesDataset
from unfog.data.shapes.options import ShapesOptions
from unfog.data.shapes.scene import ATTRIBUTES
from unfog.sampling.conditioning.conditioner import Attributes, Combined, Label, Unconditional
from unfog.sampling.gaussian import DDIM
from unfog.sampling.grid import Trailing
from unfog.sampling.request import Condition, SampleSettings

SIZES = [len(attribute.values) for attribute in ATTRIBUTES]
SETTINGS = SampleSettings(DDIM(), Trailing(), steps=1)


@pytest.fixture(scope="module")
def examples() -> Dataset:
    return ShapesDataset(ShapesOptions((1, 2), test=10), "test", 32)


@pytest.fixture(scope="module")
def fields(examples: Dataset) -> dict[str, list[object]]:
    """Class and attributes of each example."""
    gathered = examples.gather(torch.arange(10))
    return {"label": gathered["label"].tolist(), "attributes": [tuple(row) for row in gathered["attributes"].tolist()]}


def test_classes_take_turns_and_need_no_examples() -> None:
    assert in_turn(Label(3), None, range(2, 7)) == Condition([2, 0, 1, 2, 0])
    assert (needs_examples(Label(3)), classes_in_turn(Label(3))) == (False, 3)


def test_a_model_that_is_told_nothing_is_asked_for_nothing(examples: Dataset) -> None:
    plain = Unconditional()
    assert not in_turn(plain, None, range(4)).told
    assert not asked_like(plain, examples, 4, settings=SETTINGS, seed=0, batch_size=4).condition.told
    assert (needs_examples(plain), classes_in_turn(plain)) == (False, 0)


def test_attributes_are_those_of_examples_in_turn(examples: Dataset, fields: dict[str, list[object]]) -> None:
    attributes = Attributes(SIZES)
    assert (needs_examples(attributes), classes_in_turn(attributes)) == (True, 0)
    asked = in_turn(attributes, examples, range(8, 12))
    assert asked == Condition(attributes=[fields["attributes"][k] for k in (8, 9, 0, 1)])
    with pytest.raises(ValueError, match="examples whose attributes are asked for, got none"):
        in_turn(attributes, None, range(4))


def test_class_and_attributes_of_a_sample_are_of_one_example(
    examples: Dataset, fields: dict[str, list[object]]
) -> None:
    both = Combined([Label(5), Attributes(SIZES)])
    some = condition_of(both, examples, torch.tensor([4, 0]))
    assert some == Condition([fields["label"][k] for k in (4, 0)], [fields["attributes"][k] for k in (4, 0)])
    asked = asked_like(both, examples, 25, settings=SETTINGS, seed=3, batch_size=5)
    pairs = list(zip(fields["label"], fields["attributes"], strict=True))
    found = [(asked.condition.label_of(k), asked.condition.attributes_of(k)) for k in range(25)]
    assert sorted(found[:10]) == sorted(pairs)
    assert found[10:20] == found[:10]
    assert found[:10] != pairs
