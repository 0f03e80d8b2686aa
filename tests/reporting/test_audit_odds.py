"""What (epsilon, delta) lets an attacker do: the bounds are right, tight, and rounded against us when shown."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedslm.privacy.accounting import EpsilonCurve
from fedslm.privacy.mechanism import Mechanism
from fedslm.reporting.audit.odds import FALSE_ALARMS, guess, recognised
from fedslm.reporting.audit.prices import odds_by_noise
from fedslm.reporting.audit.words import epsilon_words, left_words, one_in_words, share_words

EPSILONS = st.floats(0, 10)
DELTAS = st.floats(0, 0.1)
SHARES = st.floats(0, 1)


def test_nothing_is_learned_at_zero_and_everything_may_be_without_a_bound() -> None:
    assert guess(0.0, 0.0) == 0.5
    assert recognised(0.0, 0.0) == pytest.approx(FALSE_ALARMS)
    assert guess(math.inf, 0.0) == recognised(math.inf, 0.0) == 1.0


def test_randomised_response_reaches_both_bounds() -> None:
    epsilon = 1.7
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))  # it says the truth with this chance
    assert guess(epsilon, 0.0) == pytest.approx(truth)
    assert recognised(epsilon, 0.0, 1 - truth) == pytest.approx(truth)


@given(EPSILONS, DELTAS, SHARES)
def test_what_is_recognised_obeys_the_definition_of_privacy_in_both_directions(
    e: float, d: float, alarms: float
) -> None:
    seen = recognised(e, d, alarms)
    assert seen <= math.exp(e) * alarms + d + 1e-9
    assert 1 - alarms <= math.exp(e) * (1 - seen) + d + 1e-9


@given(EPSILONS, DELTAS, SHARES)
def test_no_number_of_false_alarms_makes_the_guess_better_than_its_bound(e: float, d: float, alarms: float) -> None:
    assert (recognised(e, d, alarms) + 1 - alarms) / 2 <= guess(e, d) + 1e-9


@given(EPSILONS, DELTAS)
def test_one_number_of_false_alarms_reaches_the_bound_of_the_guess(e: float, d: float) -> None:
    alarms = (1 - d) / (1 + math.exp(e))
    assert (recognised(e, d, alarms) + 1 - alarms) / 2 == pytest.approx(guess(e, d))


def test_the_noise_itself_says_more_than_epsilon_and_stays_above_the_best_attack() -> None:
    mechanism = Mechanism(
        unit="patient", sample_rate=1.0, clip_norm=1.0, noise_multiplier=4.0, steps=4, declared_population=100
    )
    pair = EpsilonCurve(mechanism, delta=1e-5).epsilon(1), 1e-5
    found = odds_by_noise([(mechanism, 1)], pair=pair)
    best = 0.5 * (
        1 + math.erf(0.25 / math.sqrt(2))
    )  # four steps of noise 4 are one of noise 2; the best guess is known
    assert best < found["guess"] < guess(*pair) - 0.1
    assert FALSE_ALARMS < found["recognised"] < recognised(*pair) / 2


def test_what_no_mechanism_is_known_of_is_added() -> None:
    assert odds_by_noise([], pair=(2.0, 1e-6), extra=(2.0, 1e-6)) == {
        "guess": pytest.approx(guess(2.0, 1e-6), rel=1e-3),
        "recognised": pytest.approx(recognised(2.0, 1e-6), rel=1e-3),
    }


@given(st.floats(0.001, 50))
def test_figures_are_rounded_against_us(value: float) -> None:
    assert float(epsilon_words(value)) >= value - 1e-6
    assert float(left_words(value)) <= value + 1e-6


@given(st.floats(0.0001, 1))
def test_chances_are_rounded_up(share: float) -> None:
    shown = float(share_words(share).removesuffix(" %")) / 100
    assert share - 1e-9 <= shown <= share + 0.00101


@pytest.mark.parametrize(
    ("share", "words"), [(0.5, "50.0 %"), (0.9991, "99.91 %"), (0.99999, "100 %"), (1.0, "100 %"), (0.7311, "73.2 %")]
)
def test_chances_in_words(share: float, words: str) -> None:
    assert share_words(share) == words


def test_small_chances_in_words() -> None:
    assert one_in_words(1e-6) == "1 in 1,000,000"
    assert one_in_words(3e-6) == "1 in 333,333"
    assert one_in_words(0.0) == "0"
    assert epsilon_words(None) == epsilon_words(math.inf) == "no bound"
