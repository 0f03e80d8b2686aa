"""Scores: what one patient moves, the noise on them, what is read from their sum, and what they cost."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.governance.plan import Plan, PlannedScores
from fedslm.privacy import noise, scores
from fedslm.privacy.accounting import (
    EpsilonCurve,
    calibrate_scores_noise,
    epsilon_spent,
    gaussian_epsilon,
    prv_epsilon,
    renyi_epsilon,
)
from fedslm.privacy.composition import Composition
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.scores import Accuracy, read_accuracy, release_scores, scaled, score_range
from fedslm.secagg.encoding import Block, FixedPoint
from tests.builders import masked_plan, toy_hospitals
from tests.mutants import CAUGHT, Mutant, mutate
from tests.privacy.toys import build_mechanism

SIGMA = 2.0


def stream(number: int = 0) -> SecureStream:
    return SecureStream(number.to_bytes(32, "big"))


def scoring(sigma: float = SIGMA) -> Mechanism:
    return build_mechanism(scores_noise_multiplier=sigma)


def plan_for(*, sigma: float = SIGMA, hospitals: int = 3, population: int = 40, ring_bits: int = 32) -> Plan:
    members = tuple(dataclasses.replace(each, declared_population=population) for each in toy_hospitals(hospitals))
    privacy = {"scores": PlannedScores(noise_multiplier=sigma)}
    return masked_plan(hospitals=members, privacy=privacy, secagg={"ring_bits": ring_bits})


def released(shares: list[float], *, sigma: float = SIGMA, number: int = 0) -> npt.NDArray[np.float64]:
    return release_scores(shares, scoring(sigma), stream=stream(number))


# --- one patient ------------------------------------------------------------------------------------------------------


def exact(shares: list[float]) -> list[Fraction]:
    return [Fraction(number) for number in scores._sum(shares)]


@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0, 1))
def test_one_patient_moves_the_sum_by_one_at_most_and_not_by_a_rounding_more(others: list[float], one: float) -> None:
    moved = [a - b for a, b in zip(exact([*others, one]), exact(others), strict=True)]
    assert sum(number**2 for number in moved) <= 1
    assert moved == exact([one])  # whoever else is there


def test_a_patient_whose_answers_are_all_right_or_all_wrong_moves_it_by_one() -> None:
    for share in (0.0, 1.0):
        right, patients = scores._sum([share])
        assert math.hypot(right, patients) == pytest.approx(1.0, abs=1e-8)
        assert (right > 0) == (share == 1.0)


def test_without_noise_the_sum_is_the_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "rounded_gaussian", lambda count, **_: np.zeros(count, dtype=np.int64))
    shares = [1.0, 0.5, 0.0, 1 / 3]
    expected = [sum(2 * share - 1 for share in shares), len(shares)]
    np.testing.assert_allclose(released(shares) * math.sqrt(2), expected, atol=1e-8)


# --- the noise --------------------------------------------------------------------------------------------------------


def noise_is_all_there() -> None:
    """Two numbers of many releases, by Kolmogorov-Smirnov: sigma and nothing else; also where nobody was scored."""
    for shares in ([], [1.0, 0.0, 0.5]):
        found = np.array([released(shares, number=number) - scores._sum(shares) for number in range(2000)]).ravel()
        assert stats.kstest(found, stats.norm(scale=SIGMA).cdf).pvalue > 1e-3
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(found, stats.norm(scale=SIGMA * wrong).cdf).pvalue < 1e-9


MUTANTS = [
    Mutant(
        name="no noise",
        function=scores.release_scores,
        old="scoring.release(_sum(shares), stream=stream)",
        new="_sum(shares)",
        check=noise_is_all_there,
    ),
    Mutant(
        name="half the noise",
        function=scores.release_scores,
        old="scoring = mechanism.scoring",
        new="scoring = __import__('dataclasses').replace(mechanism.scoring, noise_multiplier=1.0)",
        check=noise_is_all_there,
    ),
    Mutant(
        name="noise only where somebody was scored",
        function=scores.release_scores,
        old="scoring.release(_sum(shares), stream=stream)",
        new="scoring.release(_sum(shares), stream=stream) if shares else _sum(shares)",
        check=noise_is_all_there,
    ),
]


def test_the_noise_is_sigma() -> None:
    noise_is_all_there()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_noise_that_is_missing_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, mutant)
    with pytest.raises(CAUGHT):
        mutant.check()


def test_who_releases_no_scores_cannot() -> None:
    with pytest.raises(PrivacyError, match="releases no scores"):
        release_scores([], build_mechanism(), stream=stream())
    with pytest.raises(PrivacyError, match="releases no scores"):
        score_range(masked_plan())


# --- what is read -----------------------------------------------------------------------------------------------------


def read(plan: Plan, shares: list[list[float]], *, number: int) -> Accuracy:
    """The way of one session: each hospital releases, encodes; the sum is decoded and read."""
    fixed = FixedPoint(
        ring_bits=32 if plan.secagg is None else plan.secagg.ring_bits,
        parties=len(shares),
        blocks=(Block(name="scores", length=2, value_range=score_range(plan)),),
    )
    assert plan.privacy.scores is not None
    sigma = plan.privacy.scores.noise_multiplier
    total = np.zeros(2, np.uint32)
    for place, each in enumerate(shares):
        at = 1000 * number + place
        vector = scaled(released(each, sigma=sigma, number=at), plan).astype(np.float32)
        total += fixed.encode(vector, stream(10**6 + at))
    sums = fixed.decode(total, count=len(shares))
    step = fixed.blocks[0].value_range / fixed.half
    return read_accuracy(sums, plan, hospitals=len(shares), step=step)


@pytest.mark.parametrize(("ring_bits", "population"), [(32, 100), (24, 100), (24, 100_000)])
def test_the_accuracy_is_off_by_the_noise_it_names(ring_bits: int, population: int) -> None:
    plan = plan_for(ring_bits=ring_bits, population=population)
    shares = [[1.0] * 60 + [0.0] * 30, [1.0] * 40 + [0.5] * 40, [0.0] * 20 + [1.0] * 50]
    everybody = [share for each in shares for share in each]
    truth = sum(everybody) / len(everybody)
    found = [read(plan, shares, number=number) for number in range(1000)]
    errors = np.array([(one.value - truth) / one.stddev for one in found if one.value is not None and one.stddev])
    assert len(errors) == 1000
    assert stats.kstest(errors, "norm").pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(errors, stats.norm(scale=wrong).cdf).pvalue < 1e-9


def test_where_the_noise_drowns_the_patients_no_accuracy_is_read() -> None:
    plan = plan_for()
    least = 3 * math.sqrt(2 * 3) * SIGMA
    for count, is_read in ((0.0, False), (-5.0, False), (0.99 * least, False), (1.01 * least, True)):
        sums = np.array([0.0, count]) / (math.sqrt(2) * plan.largest_population)
        found = read_accuracy(sums, plan, hospitals=3, step=1e-9)
        assert (found.value is not None) == (found.stddev is not None) == is_read
    assert read_accuracy(np.array([np.nan, np.nan]), plan, hospitals=3, step=1e-9).value is None


@pytest.mark.parametrize("ratio", [-3.0, 3.0])
def test_an_accuracy_is_a_share(ratio: float) -> None:
    found = read_accuracy(np.array([ratio * 10.0, 10.0]), plan_for(), hospitals=3, step=1e-9)
    assert found.value == (0.0 if ratio < 0 else 1.0)


@pytest.mark.parametrize("population", [1, 7, 40, 10**6])
def test_whatever_the_noise_gives_fits_the_fixed_point(population: int) -> None:
    plan = plan_for(population=population, ring_bits=24)
    fixed = FixedPoint(ring_bits=24, parties=3, blocks=(Block(name="scores", length=2, value_range=score_range(plan)),))
    for far in (1e9, -1e9):
        vector = scaled(np.array([far, -far]), plan).astype(np.float32)
        assert abs(vector).max() == score_range(plan)
        fixed.encode(vector, stream())
    assert score_range(plan) >= 1 + 8 * SIGMA / population


# --- the cost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "sessions"), [(0.5, 30), (3.0, 10), (8.0, 33), (20.0, 6)])
def test_the_noise_is_the_least_that_keeps_all_sessions_within_epsilon(epsilon: float, sessions: int) -> None:
    sigma = calibrate_scores_noise(epsilon=epsilon, delta=1e-6, sessions=sessions)
    alone = scoring(sigma).scoring
    assert alone is not None
    spent = epsilon_spent(alone, sessions=sessions, delta=1e-6)
    assert spent <= epsilon
    assert gaussian_epsilon(sigma, times=sessions, delta=1e-6) <= spent + 1e-9  # in closed form
    assert gaussian_epsilon(sigma, times=sessions, delta=1e-6) == pytest.approx(epsilon, abs=0.01)
    less = dataclasses.replace(alone, noise_multiplier=sigma - 2e-4)
    assert epsilon_spent(less, sessions=sessions, delta=1e-6) > epsilon


@pytest.mark.parametrize("sigma", [1.0, 200.0])
def test_epsilon_is_the_larger_of_the_two_costs(sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    both, trained = scoring(sigma), build_mechanism()
    held_out = both.scoring
    assert held_out is not None
    curve = EpsilonCurve(both, delta=1e-5)
    for sessions in (0, 1, 3):
        parts = [epsilon_spent(each, sessions=sessions, delta=1e-5) for each in (trained, held_out)]
        assert curve.epsilon(sessions) == max(parts)
    bounds = [renyi_epsilon(each, sessions=3, delta=1e-5) for each in (trained, held_out)]
    assert renyi_epsilon(both, sessions=3, delta=1e-5) == max(bounds)
    assert (bounds[0] < bounds[1]) == (sigma == 1.0)
    monkeypatch.setattr("fedslm.privacy.accounting.run_prv", lambda **_: 2.0)
    exactly = gaussian_epsilon(held_out.accounted_noise_multiplier, times=3, delta=1e-5)
    assert prv_epsilon(both, sessions=3, delta=1e-5) == max(2.0, exactly)
    assert prv_epsilon(trained, sessions=3, delta=1e-5) == 2.0
    monkeypatch.setattr("fedslm.privacy.accounting.run_prv", lambda **_: None)
    assert prv_epsilon(both, sessions=3, delta=1e-5) is None


def test_a_composition_of_several_plans_counts_scores_and_training() -> None:
    both, alone = Composition(), Composition()
    both.add(scoring(1.0), sessions=2)
    alone.add(build_mechanism(), sessions=2)
    held_out = scoring(1.0).scoring
    assert held_out is not None
    apart = [alone.epsilon(delta=1e-5), epsilon_spent(held_out, sessions=2, delta=1e-5)]
    assert max(apart) < both.epsilon(delta=1e-5) < sum(apart)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores_noise_multiplier": 0.0}, "noise_multiplier is 0.0"),
        ({"scores_noise_multiplier": math.inf}, "noise_multiplier is inf"),
        ({"scores_noise_multiplier": 2000.0}, "noise_multiplier is 2000.0"),
        ({"scores_noise_multiplier": 1.0, "unit": "record", "max_records_per_unit": 1}, "privacy unit is the record"),
    ],
)
def test_scores_without_a_guarantee_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PrivacyError, match=says):
        build_mechanism(**changes)
