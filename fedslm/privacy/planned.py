"""A plan's privacy as the `Mechanism` that hospitals run and everybody accounts for."""

from __future__ import annotations

from typing import Any

from fedslm.governance.plan import Plan
from fedslm.privacy.ledger_rows import Reserved
from fedslm.privacy.mechanism import DEFAULT_MAX_PARAMETERS, Mechanism


def planned_mechanism(plan: Plan, hospital: str) -> Mechanism:
    """The mechanism that one hospital runs in every session of a plan.

    Raises:
      ConfigError: the plan does not name the hospital. PrivacyError: the plan has no privacy.
    """
    return Mechanism(**_settings(plan, hospital))


def planned_reservation(
    plan: Plan, hospital: str, *, coordinator: str, budget_epsilon: float | None, budget_delta: float
) -> Reserved:
    """The ledger's entry with which one hospital approves a plan.

    Args:
      coordinator: fingerprint of the key that signed the plan; "" for a plan in the clear.
      budget_epsilon: the hospital's limit for its population; None where it has none.
      budget_delta: the limit on delta.
    Raises:
      ConfigError: the plan does not name the hospital.
    """
    privacy = plan.privacy
    return Reserved(
        plan=plan.sha256,
        event="none" if privacy.mode == "none" else "dp-sgd/1" if privacy.scores is None else "dp-sgd+scores/1",
        **_settings(plan, hospital),
        max_sessions=privacy.max_sessions,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        budget_epsilon=budget_epsilon,
        budget_delta=budget_delta,
        coordinator=coordinator,
    )


def _settings(plan: Plan, hospital: str) -> dict[str, Any]:
    """What mechanism and reservation have in common, by the names of both."""
    privacy, scores = plan.privacy, plan.privacy.scores
    return {
        "unit": privacy.unit,
        "sample_rate": privacy.sample_rate,
        "clip_norm": privacy.clip_norm,
        "noise_multiplier": privacy.noise_multiplier,
        "steps": plan.training.local_steps,
        "declared_population": plan.hospital(hospital).declared_population,
        "max_records_per_unit": privacy.max_records_per_unit,
        "max_records_per_patient": privacy.max_records_per_patient,
        "max_parameters": max(plan.adapter.trained_parameters, DEFAULT_MAX_PARAMETERS),
        "scores_noise_multiplier": None if scores is None else scores.noise_multiplier,
    }
