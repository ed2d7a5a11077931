from dataclasses import replace

import pytest

from unfog.evaluation.card import NAMES, Card, ExtractorCard, IncomparableError, require_alike, require_comparable
from unfog.evaluation.scores import Comparison, Missing
from unfog.evaluation.tables import Compared, side_by_side, told_card
from unfog.metrics.interval import Score

EXTRACTOR = ExtractorCard("net", "a" * 64, "none", "x / 255", "3")
CARD = Card.of(EXTRACTOR, (3, 8, 8), (100, 200), "f" * 64, 0, "95 %")
OTHER = {"count": 50, "reference_count": 9, "seed": 1}


def test_a_card_survives_being_written():
    assert Card.from_dict(CARD.to_dict()) == CARD


def test_every_field_of_a_card_has_a_name():
    assert set(NAMES) == set(CARD.to_dict())
    assert told_card(CARD)["number of samples"] == "100"


def test_cards_that_agree_may_stand_in_one_table():
    require_comparable({"a": CARD, "b": replace(CARD)})
    require_comparable({})


@pytest.mark.parametrize("field", list(NAMES))
def test_every_field_that_differs_keeps_numbers_out_of_one_table(field):
    other = replace(CARD, **{field: OTHER.get(field, "another")})
    with pytest.raises(IncomparableError, match=f"first and second cannot stand in one table.*{NAMES[field]}"):
        require_comparable({"first": CARD, "second": other})
    require_comparable({"first": CARD, "second": other}, varying=[field])


def test_the_sentence_says_both_values():
    with pytest.raises(IncomparableError, match=r"the number of samples \(100; 50\)"):
        require_comparable({"a": CARD, "b": replace(CARD, count=50)})


def test_a_condition_that_one_record_does_not_state_differs():
    with pytest.raises(IncomparableError, match=r"features \(x; None\)"):
        require_alike({"a": {"features": "x"}, "b": {}})


def test_a_field_that_no_card_has_is_refused():
    with pytest.raises(ValueError, match="no steps"):
        require_comparable({"a": CARD}, varying=["steps"])


def compared(card=CARD):
    few = Missing("few")
    return Compared(card, replace(Comparison.without(few), precision=Score(0.5, 0.4, 0.6, 10)))


def test_a_table_has_a_row_for_each_and_no_column_for_what_is_missing_everywhere():
    table = side_by_side({"a": compared(), "b": compared()})
    assert table[0] == ("samples", "precision")
    assert [row[0] for row in table[1:]] == ["a", "b"]
    assert table[1][1].startswith("50")


def test_a_table_refuses_numbers_of_different_cards():
    with pytest.raises(IncomparableError, match="the seed"):
        side_by_side({"a": compared(), "b": compared(replace(CARD, seed=1))})
