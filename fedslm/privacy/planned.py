"""A plan's privacy as the `Mechanism` that hospitals run and everybody accounts for."""

from __future__ import annotations

from fedslm.governance.plan import Plan
from fedslm.privacy.mechanism import DEFAULT_MAX_PARAMETERS, Mechanism


def planned_mechanism(plan: Plan, hospital: str) -> Mechanism:
    """The mechanism that one hospital runs in every session of a plan.

    Raises:
      ConfigError: the plan does not name the hospital. PrivacyError: the plan has no privacy.
    """
    privacy = plan.privacy
    return Mechanism(
        unit=privacy.unit,
        sample_rate=privacy.sample_rate,
        clip_norm=privacy.clip_norm,
        noise_multiplier=privacy.noise_multiplier,
        steps=plan.training.local_steps,
        declared_population=plan.hospital(hospital).declared_population,
        max_records_per_unit=privacy.max_records_per_unit,
        max_parameters=max(plan.adapter.trained_parameters, DEFAULT_MAX_PARAMETERS),
    )
