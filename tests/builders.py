"""A plan made by hand, for tests that need one and no model."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedslm.config.schema import FedAdamConfig, ModelConfig
from fedslm.governance.plan import (
    Plan,
    PlannedAdapter,
    PlannedHospital,
    PlannedPrivacy,
    PlannedSecAgg,
    PlannedTraining,
)

UNPRIVATE = {"mode": "none", "epsilon": None, "noise_multiplier": 0.0}
SECAGG = PlannedSecAgg(colluders=0, honest=2, ring_bits=32, value_range=4.0, step_deadline_s=45.0)


def toy_hospitals(count: int) -> tuple[PlannedHospital, ...]:
    """hospital-0, hospital-1, ... of one size."""
    return tuple(PlannedHospital(name=f"hospital-{n}", declared_population=40, weight=1.0) for n in range(count))


def masked_plan(**changes: Any) -> Plan:
    """`toy_plan`, masked; `secagg={...}` changes fields of the secure aggregation."""
    secagg = dataclasses.replace(SECAGG, **changes.pop("secagg", {}))
    return toy_plan(**{"secagg": secagg, "min_cohort": 3, **changes})


def toy_plan(**changes: Any) -> Plan:
    """A plan for three hospitals, in the clear; `changes` replace fields, a dict fields of a part: `privacy={...}`."""
    plan = Plan(
        version=3,
        nonce="0" * 32,
        model=ModelConfig(name="toy", source="/models/toy", max_length_tokens=32),
        adapter=PlannedAdapter(
            method="ffa",
            rank=4,
            alpha=16.0,
            targets=("q_proj",),
            initial_sha256="a" * 64,
            frozen_sha256="b" * 64,
            trained_parameters=100,
        ),
        privacy=PlannedPrivacy(
            mode="local",
            epsilon=8.0,
            delta=1e-5,
            unit="patient",
            clip_norm=1.0,
            noise_multiplier=1.5,
            sample_rate=0.25,
            max_records_per_unit=1,
            max_records_per_patient=None,
            max_sessions=3,
            scores=None,
        ),
        training=PlannedTraining(rounds=3, local_steps=1, learning_rate=1.0, optimizer="sgd", proximal_mu=0.0),
        strategy=FedAdamConfig(name="fedadam", eta=0.02, beta_1=0.9, beta_2=0.99, tau=1e-6),
        hospitals=toy_hospitals(3),
        min_cohort=2,
        secagg=None,
        deadline_s=60.0,
    )
    parts = {
        name: dataclasses.replace(getattr(plan, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(plan, **parts)
