"""Settings that contradict each other are refused before anything starts, naming both values."""

from __future__ import annotations

import pytest

from fedslm.config.checks import check_delta, check_hospitals, floor_delta
from fedslm.config.compose import compose
from fedslm.config.schema import check_masking
from fedslm.errors import ConfigError, PrivacyError


@pytest.mark.parametrize(
    ("overrides", "first", "second"),
    [
        ("model.max_length_tokens=512", "model.max_length_tokens=512", "256 tokens"),
        ("model.source=some/model", "model.source=some/model", "model.revision=null"),
        ("data.path=rows.jsonl", "data.path=rows.jsonl", "data=embedded"),
        ("data=jsonl", "data=jsonl", "data.path"),
        ("data=jsonl data.path=x data.columns=null", "data=jsonl", "data.columns.hospital"),
        ("data=jsonl data.path=x data.columns.hospital=null", "data=jsonl", "data.columns.hospital"),
        ("data=jsonl data.path=x data.columns.patient_id=null", "privacy.unit=patient", "data.columns.patient_id"),
        (
            "privacy.unit=record privacy.max_records_per_unit=2",
            "privacy.unit=record",
            "privacy.max_records_per_unit=2",
        ),
        ("privacy.max_records_per_patient=4", "privacy.unit=patient", "privacy.max_records_per_patient=4"),
        (
            "data=jsonl data.path=x data.columns.patient_id=null privacy.unit=record privacy.max_records_per_patient=4",
            "privacy.max_records_per_patient=4",
            "data.columns.patient_id",
        ),
        ("privacy.epsilon=null", "privacy=local", "privacy.epsilon is null"),
        ("privacy=none privacy.epsilon=3", "privacy=none", "privacy.epsilon=3"),
        ("privacy=none privacy.scores=dp", "privacy.scores=dp", "privacy=none"),
        ("privacy.unit=record privacy.scores=dp", "privacy.scores=dp", "privacy.unit=record"),
        ("secagg=none privacy.scores=dp", "privacy.scores=dp", "secagg=none"),
        ("secagg.ring_bits=16 privacy.scores=dp", "privacy.scores=dp", "secagg.ring_bits=16"),
        ("min_cohort=2", "secagg=masked", "min_cohort=2"),
        ("secagg.colluders=2 min_cohort=3", "secagg.colluders=2", "min_cohort=3"),
        ("secagg.honest=4 min_cohort=3", "secagg.honest=4", "min_cohort=3"),
    ],
)
def test_a_contradiction_names_both_values(overrides: str, first: str, second: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(overrides.split())
    assert first in str(refused.value)
    assert second in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "overrides",
    [
        "model.max_length_tokens=256",
        "model.source=some/model model.revision=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "model.source=./folder",
        "data=jsonl data.path=x data.columns.patient_id=null privacy.unit=record",
        "privacy.unit=record",
        "privacy.unit=record privacy.max_records_per_patient=4",
        "data=jsonl data.path=x privacy.unit=record privacy.max_records_per_patient=4",
        "secagg=none min_cohort=1",
        "privacy.scores=dp secagg.ring_bits=24",
        "secagg.colluders=2 min_cohort=4",
    ],
)
def test_what_does_not_contradict_is_accepted(overrides: str) -> None:
    assert compose(overrides.split()).rounds == 30


@pytest.mark.parametrize(
    ("names", "min_cohort", "named"), [(("a",), 1, "in the data is 1"), (("a", "b"), 3, "min_cohort=3")]
)
def test_too_few_hospitals_are_refused(names: tuple[str, ...], min_cohort: int, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_hospitals(names, min_cohort=min_cohort)
    check_hospitals(("a", "b", "c"), min_cohort=3)


@pytest.mark.parametrize("revision", ["main", "v1.0", "a" * 39, "A" * 40, "null"])
def test_a_model_of_a_hub_is_named_by_its_commit(revision: str) -> None:
    with pytest.raises(ConfigError, match="revision"):
        compose(["model.source=some/model", f"model.revision={revision}"])
    assert compose(["model.source=some/model", f"model.revision={'a' * 40}"]).model.revision == "a" * 40


@pytest.mark.parametrize("min_cohort", [2, 3])
def test_two_hospitals_cannot_hide_from_each_other_and_are_told_the_way_out(min_cohort: int) -> None:
    with pytest.raises(ConfigError, match=r"at least 3 hospitals, there are 2: .*secagg=none"):
        check_hospitals(("a", "b"), min_cohort=min_cohort, masked=True)
    check_hospitals(("a", "b"), min_cohort=2, masked=False)


def satisfiable(n: int, colluders: int, honest: int) -> bool:
    """The spec's own bounds at n hospitals."""
    threshold = (n + colluders) // 2 + 1
    return colluders < 2 * threshold - n and max(threshold, colluders + honest) <= n


def test_a_promise_is_refused_exactly_where_some_session_of_the_plan_could_not_keep_it() -> None:
    for hospitals in range(3, 9):
        for min_cohort in range(3, hospitals + 1):
            for colluders in range(hospitals + 2):
                for honest in (2, 3):
                    wanted = all(satisfiable(n, colluders, honest) for n in range(min_cohort, hospitals + 1))
                    numbers = {"colluders": colluders, "honest": honest}
                    assert is_allowed(hospitals=hospitals, min_cohort=min_cohort, **numbers) == wanted


def is_allowed(**numbers: int) -> bool:
    try:
        check_masking(**numbers)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(("hospitals", "words"), [(2, "at least 3"), (256, "at most 255")])
def test_more_or_fewer_hospitals_than_the_protocol_is_for_are_refused(hospitals: int, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"{words} hospitals, there are {hospitals}.*secagg=none"):
        check_masking(hospitals=hospitals, min_cohort=3, colluders=0, honest=2)
    check_masking(hospitals=255, min_cohort=3, colluders=1, honest=2)


def test_delta_may_be_at_most_one_in_a_hundred_populations() -> None:
    check_delta(1 / 4000, population=40, hospital="h")
    with pytest.raises(PrivacyError, match=r"privacy\.delta=0\.00026 .* 40 patients.*privacy\.delta=0\.0001 or lower"):
        check_delta(0.00026, population=40, hospital="h")


@pytest.mark.parametrize(("largest", "floor"), [(2.5e-4, 1e-4), (1e-6, 1e-6), (9.99e-7, 1e-7)])
def test_the_proposed_delta_is_a_power_of_ten_below_the_bound(largest: float, floor: float) -> None:
    assert floor_delta(largest) == pytest.approx(floor)
    assert floor_delta(largest) <= largest * (1 + 1e-12)
