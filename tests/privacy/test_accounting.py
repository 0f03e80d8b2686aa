"""Epsilon against reference figures and other accountants; calibration never overshoots."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from scipy import stats

from fedslm.errors import PrivacyError
from fedslm.privacy import accounting
from fedslm.privacy.accounting import (
    EpsilonCurve,
    affordable_sessions,
    calibrate_noise_multiplier,
    epsilon_spent,
    patient_epsilon,
    prv_epsilon,
    renyi_epsilon,
)
from tests.privacy.toys import build_mechanism

EPOCHS = (1, 3, 5, 10)
REFERENCE = {
    0.6: (5.751, 7.959, 9.554, 12.675),
    0.8: (2.747, 3.777, 4.539, 6.037),
    1.0: (1.530, 2.195, 2.688, 3.656),
    1.5: (0.619, 0.999, 1.273, 1.797),
}
"""Noise multiplier -> epsilon after so many epochs, by Google's accountant, for N 2000, B 64, 31 steps, delta 1e-5."""

RENYI = {0.6: (7.03, 9.41, 11.13, 14.47), 0.8: (3.45, 4.52, 5.32, 6.89), 1.0: (2.00, 2.63, 3.13, 4.13)}
"""The same by Opacus's accountant of Renyi DP."""

PATIENTS = {1: 0.72, 2: 1.55, 4: 3.39}
"""Records of a patient -> the patient's epsilon after 310 steps at noise multiplier 3."""


@pytest.mark.parametrize("sigma", sorted(REFERENCE))
def test_reference_figures(sigma: float) -> None:
    curve = EpsilonCurve(build_mechanism(noise_multiplier=sigma), delta=1e-5)
    assert [curve.epsilon(epochs) for epochs in EPOCHS] == pytest.approx(REFERENCE[sigma], abs=1e-3)


@pytest.mark.parametrize("sigma", sorted(RENYI))
def test_renyi_reference_figures(sigma: float) -> None:
    mechanism = build_mechanism(noise_multiplier=sigma)
    found = [renyi_epsilon(mechanism, sessions=epochs, delta=1e-5) for epochs in EPOCHS]
    assert found == pytest.approx(RENYI[sigma], rel=5e-3)  # the two libraries try different orders


@pytest.mark.parametrize(
    ("rate", "sigma", "steps"), [(0.001, 0.5, 1000), (0.02, 0.8, 33), (0.25, 1.5, 9), (1.0, 4.0, 10), (0.5, 20.0, 3000)]
)
def test_the_loss_distribution_is_below_the_renyi_bound(rate: float, sigma: float, steps: int) -> None:
    mechanism = build_mechanism(sample_rate=rate, noise_multiplier=sigma, steps=steps)
    pld = epsilon_spent(mechanism, sessions=1, delta=1e-6)
    assert pld <= renyi_epsilon(mechanism, sessions=1, delta=1e-6) + 0.02


def test_curve_agrees_with_the_accountant_of_the_event() -> None:
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(build_mechanism().event(3))
    curve = EpsilonCurve(build_mechanism(), delta=1e-5)
    assert curve.epsilon(3) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)
    assert curve.epsilon(3) == epsilon_spent(build_mechanism(), sessions=3, delta=1e-5)


def test_curve_rises_from_zero_and_is_fast() -> None:
    curve = EpsilonCurve(build_mechanism(), delta=1e-5)
    started = time.process_time()
    values = [curve.epsilon(sessions) for sessions in range(20)]
    assert (time.process_time() - started) / 20 < 0.15
    assert values[0] == 0.0
    assert values == sorted(values)
    assert len(set(values)) == 20


def test_a_session_under_another_delta_or_of_more_steps_is_priced_anew() -> None:
    mechanism = build_mechanism()
    base = epsilon_spent(mechanism, sessions=2, delta=1e-5)
    assert epsilon_spent(build_mechanism(steps=62), sessions=1, delta=1e-5) == pytest.approx(base, abs=1e-9)
    assert epsilon_spent(mechanism, sessions=2, delta=1e-6) > base


def test_calibration_gives_the_reference_noise() -> None:
    sigma = calibrate_noise_multiplier(epsilon=4.0, delta=1e-5, sample_rate=0.032, steps=620, declared_population=2000)
    assert sigma == pytest.approx(1.142, abs=1e-3)
    assert round(sigma, 4) == sigma
    assert epsilon_spent(build_mechanism(noise_multiplier=sigma, steps=620), sessions=1, delta=1e-5) <= 4.0
    less = build_mechanism(noise_multiplier=sigma - 1e-4, steps=620)
    assert epsilon_spent(less, sessions=1, delta=1e-5) > 4.0


@pytest.mark.parametrize(("population", "steps", "sigma"), [(500, 160, 1.974), (10_000, 3140, 0.747)])
def test_reference_noise_at_other_sizes_is_the_smallest_that_does(population: int, steps: int, sigma: float) -> None:
    setting: dict[str, Any] = {"sample_rate": 64 / population, "steps": steps, "declared_population": population}
    within, beyond = (
        epsilon_spent(build_mechanism(noise_multiplier=sigma + change, **setting), sessions=1, delta=1e-5)
        for change in (1e-3, -1e-3)
    )
    assert within < 4.0 < beyond


def test_unreachable_targets_are_refused() -> None:
    with pytest.raises(PrivacyError, match="No noise multiplier up to 1000"):
        calibrate_noise_multiplier(epsilon=1e-3, delta=1e-6, sample_rate=0.5, steps=1000, declared_population=2000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", -1.0),
        ("epsilon", float("nan")),
        ("delta", 0.0),
        ("delta", 1.0),
        ("sample_rate", 0.0),
        ("sample_rate", 2.0),
        ("steps", 0),
        ("steps", 2.5),
    ],
)
def test_calibration_refuses_what_makes_no_sense(field: str, value: Any) -> None:
    settings: dict[str, Any] = {
        "epsilon": 4.0,
        "delta": 1e-5,
        "sample_rate": 0.032,
        "steps": 620,
        "declared_population": 2000,
    }
    with pytest.raises(PrivacyError, match=f"{field} is {value}"):
        calibrate_noise_multiplier(**(settings | {field: value}))


def test_disagreeing_accountants_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "divergence_epsilon", lambda *_: 3.63)
    with pytest.raises(PrivacyError, match=r"disagree.*3\.656.*3\.63"):
        epsilon_spent(build_mechanism(), sessions=10, delta=1e-5)
    monkeypatch.setattr(accounting, "divergence_epsilon", lambda *_: 3.64)
    assert epsilon_spent(build_mechanism(), sessions=10, delta=1e-5) == pytest.approx(3.656, abs=1e-3)


def test_small_losses_get_a_finer_grid() -> None:
    # At an interval of 1e-3 this setting costs 0.245, above the Renyi bound of 0.191.
    mechanism = build_mechanism(sample_rate=5e-4, noise_multiplier=2.0, steps=20_000)
    assert epsilon_spent(mechanism, sessions=1, delta=1e-6) < 0.15


def test_sampler_error_above_a_hundredth_of_delta_is_refused() -> None:
    with pytest.raises(PrivacyError, match="Random number generation"):
        EpsilonCurve(build_mechanism(), delta=1e-19).epsilon(1)


def test_nothing_spent_after_nothing_done() -> None:
    for price in (epsilon_spent, renyi_epsilon, prv_epsilon):
        assert price(build_mechanism(), sessions=0, delta=1e-6) == 0.0  # type: ignore[operator]
    assert patient_epsilon(build_mechanism(unit="record"), sessions=0, delta=1e-6, records=3) == 0.0


@pytest.mark.parametrize("price", [epsilon_spent, renyi_epsilon, prv_epsilon])
def test_impossible_questions_are_refused(price: Any) -> None:
    with pytest.raises(PrivacyError, match="sessions"):
        price(build_mechanism(), sessions=-1, delta=1e-6)
    with pytest.raises(PrivacyError, match="delta"):
        price(build_mechanism(), sessions=1, delta=0.0)


def test_the_affordable_sessions_are_the_last_ones_within_epsilon() -> None:
    mechanism = build_mechanism()
    two, three = (epsilon_spent(mechanism, sessions=sessions, delta=1e-5) for sessions in (2, 3))
    assert affordable_sessions(mechanism, epsilon=three, delta=1e-5) == 3
    assert affordable_sessions(mechanism, epsilon=three - 1e-6, delta=1e-5) == 2
    assert affordable_sessions(mechanism, epsilon=two, delta=1e-5) == 2
    assert affordable_sessions(mechanism, epsilon=0.5, delta=1e-5) == 0
    with pytest.raises(PrivacyError, match="epsilon is 0"):
        affordable_sessions(mechanism, epsilon=0.0, delta=1e-5)


def test_more_sessions_than_anybody_takes_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_SESSIONS", 4)
    assert affordable_sessions(build_mechanism(), epsilon=100.0, delta=1e-5) == 4


# --- the patient, where the record is the unit ---------------------------------------------------------------------------


@pytest.mark.parametrize("records", sorted(PATIENTS))
def test_patient_reference_figures(records: int) -> None:
    mechanism = build_mechanism(unit="record", noise_multiplier=3.0)
    found = patient_epsilon(mechanism, sessions=10, delta=1e-5, records=records)
    assert found == pytest.approx(PATIENTS[records], abs=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("records", "epsilon"), [(1, 3.66), (2, 8.12), (4, 18.8), (8, 46.2), (16, 123)])
def test_patient_reference_figures_at_less_noise(records: int, epsilon: float) -> None:
    found = patient_epsilon(build_mechanism(unit="record"), sessions=10, delta=1e-5, records=records)
    assert found == pytest.approx(epsilon, rel=5e-3)


def test_a_patient_of_one_record_costs_what_a_record_does() -> None:
    mechanism = build_mechanism(unit="record", noise_multiplier=2.0)
    assert patient_epsilon(mechanism, sessions=3, delta=1e-5, records=1) == pytest.approx(
        epsilon_spent(mechanism, sessions=3, delta=1e-5), abs=1e-4
    )


def hockey_stick(epsilon: float, *, rate: float, sigma: float, records: int) -> float:
    """Delta of one step at epsilon, by integration over the released number, the worse of adding and removing."""
    x = np.linspace(-9 * sigma, records + 9 * sigma, 40_001)
    chances = stats.binom.pmf(np.arange(records + 1), records, rate)
    plain = stats.norm.pdf(x, scale=sigma)
    mixture = sum(chance * stats.norm.pdf(x, loc=drawn, scale=sigma) for drawn, chance in enumerate(chances))
    pairs = ((mixture, plain), (plain, mixture))
    return max(float(np.trapezoid(np.maximum(0.0, up - math.exp(epsilon) * low), x)) for up, low in pairs)


def test_one_step_costs_a_patient_what_integration_finds() -> None:
    setting = {"rate": 0.3, "sigma": 3.0, "records": 3}
    mechanism = build_mechanism(unit="record", sample_rate=0.3, noise_multiplier=3.0, steps=1)
    found = patient_epsilon(mechanism, sessions=1, delta=1e-4, records=3)
    assert hockey_stick(found, **setting) <= 1e-4 < hockey_stick(found - 5e-3, **setting)


def test_the_patient_is_asked_about_only_where_records_are_protected() -> None:
    with pytest.raises(PrivacyError, match="protects the patient"):
        patient_epsilon(build_mechanism(), sessions=1, delta=1e-5, records=4)
    with pytest.raises(PrivacyError, match="records is 0"):
        patient_epsilon(build_mechanism(unit="record"), sessions=1, delta=1e-5, records=0)
