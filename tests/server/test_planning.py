"""What a plan makes of settings that were left open."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedslm.config.compose import compose
from fedslm.errors import ConfigError
from fedslm.privacy.accounting import epsilon_spent
from fedslm.privacy.planned import planned_mechanism
from fedslm.secagg.terms import Bounds
from server.planning import alone, draft_plan, least_cohort
from tests.toys import toy_overrides


@pytest.mark.parametrize(
    ("hospitals", "overrides", "expected"),
    [
        (3, [], 3),
        (5, [], 3),
        (10, [], 5),
        (255, [], 86),
        (10, ["secagg.colluders=1"], 3),
        (10, ["secagg.honest=4"], 7),
        (10, ["min_cohort=8"], 8),
        (2, ["secagg=none"], 2),
    ],
)
def test_the_cohort_is_as_small_as_the_promise_allows(hospitals: int, overrides: list[str], expected: int) -> None:
    assert least_cohort(compose(overrides), hospitals) == expected


def test_a_promise_that_needs_more_hospitals_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"secagg\.colluders=4 with secagg\.honest=2 needs 6 .* there are 5"):
        least_cohort(compose(["secagg.colluders=4"]), 5)


@pytest.mark.parametrize("hospitals", [3, 4, 7, 10, 64, 255])
def test_a_session_of_the_smallest_cohort_keeps_the_promise(hospitals: int) -> None:
    colluders = (hospitals - 1) // 3
    least = least_cohort(compose(), hospitals)
    assert Bounds(n=least, colluders=colluders, honest=2).quorum <= least


def test_a_bound_on_a_patients_records_is_planned(toys: Path) -> None:
    sizes = {"north": 40, "south": 30, "west": 50}
    bounded = ["privacy.unit=record", "privacy.max_records_per_unit=1", "privacy.max_records_per_patient=4"]
    planned = draft_plan(compose([*toy_overrides(toys), *bounded]), sizes, seed=1).plan
    assert planned.privacy.max_records_per_patient == 4
    assert planned_mechanism(planned, "north").max_records_per_patient == 4
    unbounded = draft_plan(compose(toy_overrides(toys)), sizes, seed=1).plan
    assert unbounded.privacy.max_records_per_patient is None
    assert unbounded.version == 3


def test_noise_on_scores_is_planned_for_every_session_and_not_for_a_hospital_alone(toys: Path) -> None:
    sizes = {"north": 40, "south": 30, "west": 50}
    plan = draft_plan(compose([*toy_overrides(toys), "privacy.scores=dp"]), sizes, seed=1).plan
    assert plan.privacy.scores is not None
    scoring = planned_mechanism(plan, "north").scoring
    assert scoring is not None
    sessions, delta = plan.privacy.max_sessions, plan.privacy.delta
    assert 19.9 < epsilon_spent(scoring, sessions=sessions, delta=delta) <= 20.0
    assert draft_plan(compose(toy_overrides(toys)), sizes, seed=1).plan.privacy.scores is None
    assert alone(plan, ("north",), population=40, name="north").privacy.scores is None
