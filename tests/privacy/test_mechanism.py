"""One object holds what must agree; whatever gives no guarantee is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent, NoOpDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

from fedslm.errors import PrivacyError
from fedslm.privacy.mechanism import Mechanism


def build(**changes: Any) -> Mechanism:
    fields: dict[str, Any] = {
        "unit": "patient",
        "sample_rate": 0.032,
        "clip_norm": 0.5,
        "noise_multiplier": 1.0,
        "steps": 31,
        "declared_population": 2000,
    }
    return Mechanism(**(fields | changes))


def test_normaliser_comes_from_public_numbers() -> None:
    assert build().expected_batch_size == pytest.approx(64)
    assert build().noise_stddev == 0.5
    assert build().grid == 0.5 * 2.0**-30


def test_event_says_what_is_done() -> None:
    mechanism = build()
    sampled = PoissonSampledDpEvent(0.032, GaussianDpEvent(mechanism.accounted_noise_multiplier))
    assert mechanism.event(10) == SelfComposedDpEvent(sampled, 310)
    assert isinstance(mechanism.event(0), NoOpDpEvent)


def test_the_excess_sensitivity_is_accounted() -> None:
    assert 1 - 1e-5 < build().accounted_noise_multiplier < 1.0
    assert build(max_parameters=1_000_000_000).accounted_noise_multiplier < build().accounted_noise_multiplier


def test_a_mechanism_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().steps = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unit", "hospital"),
        ("sample_rate", 0.0),
        ("sample_rate", 1.0001),
        ("sample_rate", float("nan")),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", float("inf")),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", float("nan")),
        ("steps", 0),
        ("steps", 1.5),
        ("steps", True),
        ("declared_population", 0),
        ("max_records_per_unit", 0),
        ("max_parameters", 0),
    ],
)
def test_refusals_name_the_field_and_the_value(field: str, value: Any) -> None:
    with pytest.raises(PrivacyError) as refusal:
        build(**{field: value})
    assert field.split("_")[0] in str(refusal.value)
    assert str(value) in str(refusal.value)


def test_a_record_is_one_record() -> None:
    assert build(unit="record").max_records_per_unit == 1
    with pytest.raises(PrivacyError, match="max_records_per_unit is 4"):
        build(unit="record", max_records_per_unit=4)


@pytest.mark.parametrize("sessions", [-1, 1.5, True])
def test_impossible_sessions_are_refused(sessions: Any) -> None:
    with pytest.raises(PrivacyError, match="sessions"):
        build().event(sessions)
