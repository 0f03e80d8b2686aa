"""The same words about encryption in summary, model card and terminal, and never better ones than the plan's."""

from __future__ import annotations

from fedslm.reporting.card import card
from fedslm.reporting.promise import UNMASKED, bound_words, notice
from tests.builders import UNPRIVATE, masked_plan, toy_hospitals, toy_plan

FIVE = masked_plan(hospitals=toy_hospitals(5), secagg={"colluders": 1})


def test_a_masked_plan_says_how_many_may_collude_and_drop_out() -> None:
    assert bound_words(FIVE) == "1 of 5 may collude with the coordinator; 1 may drop out of a session"
    for text in (notice(FIVE), card(FIVE, rounds=3, seeded=False)):
        assert bound_words(FIVE) in text
        assert "not what several sums" not in text
        assert "may tell more" not in text


def test_a_plan_in_the_clear_says_so_and_nothing_of_bounds() -> None:
    assert bound_words(toy_plan()) == ""
    assert notice(toy_plan()) == UNMASKED
    assert "Secure aggregation: OFF. The coordinator could read" in card(toy_plan(), rounds=3, seeded=False)


def test_without_privacy_masking_is_not_said_to_protect_more_than_one_sum() -> None:
    unprivate = masked_plan(privacy=UNPRIVATE)
    assert "not what several sums together tell" in notice(unprivate)
    assert "sums over different hospitals may tell more" in card(unprivate, rounds=3, seeded=False)
