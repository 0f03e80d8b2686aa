"""Epsilon against reference figures and a second accountant; calibration never overshoots."""

from __future__ import annotations

import time
from typing import Any

import pytest
from dp_accounting.pld import PLDAccountant

from fedslm.errors import PrivacyError
from fedslm.privacy import accounting
from fedslm.privacy.accounting import EpsilonCurve, calibrate_noise_multiplier, epsilon_spent
from tests.privacy.test_mechanism import build

REFERENCE = {1: 1.530, 3: 2.195, 5: 2.688, 10: 3.656}
"""Epochs -> epsilon for N 2000, B 64, 31 steps an epoch, sigma 1, delta 1e-5."""


@pytest.mark.parametrize("sessions", sorted(REFERENCE))
def test_reference_figures(sessions: int) -> None:
    assert epsilon_spent(build(), sessions=sessions, delta=1e-5) == pytest.approx(REFERENCE[sessions], abs=1e-3)


def test_curve_agrees_with_the_accountant_of_the_event() -> None:
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(build().event(3))
    curve = EpsilonCurve(build(), delta=1e-5)
    assert curve.epsilon(3) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)
    assert curve.epsilon(3) == epsilon_spent(build(), sessions=3, delta=1e-5)


def test_curve_rises_from_zero_and_is_fast() -> None:
    curve = EpsilonCurve(build(), delta=1e-5)
    started = time.process_time()
    values = [curve.epsilon(sessions) for sessions in range(20)]
    assert (time.process_time() - started) / 20 < 0.15
    assert values[0] == 0.0
    assert values == sorted(values)
    assert len(set(values)) == 20


def test_calibration_gives_the_reference_noise() -> None:
    sigma = calibrate_noise_multiplier(epsilon=4.0, delta=1e-5, sample_rate=0.032, steps=620, declared_population=2000)
    assert sigma == pytest.approx(1.142, abs=1e-3)
    assert round(sigma, 4) == sigma
    assert epsilon_spent(build(noise_multiplier=sigma, steps=620), sessions=1, delta=1e-5) <= 4.0
    less = build(noise_multiplier=sigma - 1e-4, steps=620)
    assert epsilon_spent(less, sessions=1, delta=1e-5) > 4.0


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
    monkeypatch.setattr(accounting, "_renyi_epsilon", lambda *_, **__: 1.0)
    with pytest.raises(PrivacyError, match="disagree"):
        epsilon_spent(build(), sessions=10, delta=1e-5)


def test_small_losses_get_a_finer_grid() -> None:
    # At an interval of 1e-3 this setting costs 0.245, above the Renyi bound of 0.191.
    mechanism = build(sample_rate=5e-4, noise_multiplier=2.0, steps=20_000)
    assert epsilon_spent(mechanism, sessions=1, delta=1e-6) < 0.15


def test_sampler_error_above_a_hundredth_of_delta_is_refused() -> None:
    with pytest.raises(PrivacyError, match="Random number generation"):
        EpsilonCurve(build(), delta=1e-18).epsilon(1)


def test_nothing_spent_after_nothing_done() -> None:
    assert epsilon_spent(build(), sessions=0, delta=1e-6) == 0.0


def test_negative_sessions_are_refused() -> None:
    with pytest.raises(PrivacyError, match="sessions"):
        EpsilonCurve(build(), delta=1e-6).epsilon(-1)
