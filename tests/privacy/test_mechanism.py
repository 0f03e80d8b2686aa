"""One object holds what must agree; whatever gives no guarantee is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NoOpDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from scipy import stats

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.privacy.sampling import PoissonSampler
from tests.privacy.toys import build_mechanism


def test_normaliser_comes_from_public_numbers() -> None:
    assert build_mechanism().expected_batch_size == pytest.approx(64)
    assert build_mechanism().noise_stddev == 0.5


def test_event_says_what_is_done() -> None:
    mechanism = build_mechanism()
    sampled = PoissonSampledDpEvent(0.032, GaussianDpEvent(mechanism.accounted_noise_multiplier))
    assert mechanism.event(10) == SelfComposedDpEvent(sampled, 310)
    assert isinstance(mechanism.event(0), NoOpDpEvent)


def test_the_excess_sensitivity_is_accounted() -> None:
    assert 1 - 1e-5 < build_mechanism().accounted_noise_multiplier < 1.0
    assert (
        build_mechanism(max_parameters=1_000_000_000).accounted_noise_multiplier
        < build_mechanism().accounted_noise_multiplier
    )


def test_a_mechanism_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_mechanism().steps = 1  # type: ignore[misc]


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
        ("noise_multiplier", 1000.5),
        ("steps", 0),
        ("steps", 1.5),
        ("steps", True),
        ("declared_population", 0),
        ("max_records_per_unit", 0),
        ("max_records_per_patient", 0),
        ("max_records_per_patient", True),
        ("max_parameters", 0),
    ],
)
def test_refusals_name_the_field_and_the_value(field: str, value: Any) -> None:
    with pytest.raises(PrivacyError) as refusal:
        build_mechanism(**{field: value})
    assert field.split("_")[0] in str(refusal.value)
    assert str(value) in str(refusal.value)


def test_a_record_is_one_record() -> None:
    assert build_mechanism(unit="record").max_records_per_unit == 1
    with pytest.raises(PrivacyError, match="max_records_per_unit is 4"):
        build_mechanism(unit="record", max_records_per_unit=4)


def test_a_patients_records_are_bounded_only_where_records_are_protected() -> None:
    assert build_mechanism(unit="record", max_records_per_patient=4).max_records_per_patient == 4
    with pytest.raises(PrivacyError, match="max_records_per_patient is 4"):
        build_mechanism(max_records_per_patient=4)


def test_the_sampler_is_the_mechanisms() -> None:
    mechanism = build_mechanism(sample_rate=0.25, max_records_per_unit=3)
    assert mechanism.sampler == PoissonSampler(sample_rate=0.25, max_records_per_unit=3)


def test_a_release_is_the_sum_plus_its_noise_over_the_public_batch() -> None:
    mechanism, total = build_mechanism(noise_multiplier=3.0), np.linspace(-1.0, 1.0, 20_000)
    released = mechanism.release(total, stream=SecureStream(bytes(32)))
    added = released * 64 - total
    assert stats.kstest(added, stats.norm(scale=1.5).cdf).pvalue > 1e-3
    for wrong in (1 / 2, 2 / 3, 3 / 2):
        assert stats.kstest(added, stats.norm(scale=1.5 * wrong).cdf).pvalue < 1e-9
    steps = released * 64 / (0.5 * 2.0**-30)
    assert np.abs(steps - np.rint(steps)).max() < 1e-5
    quiet = mechanism.release(np.zeros(20_000), stream=SecureStream(bytes(32)))
    np.testing.assert_allclose((released - quiet) * 64, total, atol=2.0**-31)


def test_more_parameters_than_the_sensitivity_allows_for_are_refused() -> None:
    with pytest.raises(PrivacyError, match=r"trains 11 parameters.*allows for 10"):
        build_mechanism(max_parameters=10).release(np.zeros(11), stream=SecureStream(bytes(32)))


@pytest.mark.parametrize("sessions", [-1, 1.5, True])
def test_impossible_sessions_are_refused(sessions: Any) -> None:
    with pytest.raises(PrivacyError, match="sessions"):
        build_mechanism().event(sessions)
