"""From settings and the declared hospitals to a plan: calibrates the noise, draws the initial adapter, hashes both."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedslm.config.checks import check_delta, check_hospitals, floor_delta
from fedslm.config.schema import MIN_MASKED_HOSPITALS, FederationConfig, PrivacyConfig, check_masking
from fedslm.encoding import arrays_sha256
from fedslm.errors import ConfigError
from fedslm.governance.plan import (
    Plan,
    PlannedAdapter,
    PlannedHospital,
    PlannedPrivacy,
    PlannedScores,
    PlannedSecAgg,
    PlannedTraining,
    proximal_mu,
)
from fedslm.models.adapters import Adapter, describe
from fedslm.models.loading import load_base
from fedslm.privacy.accounting import calibrate_noise_multiplier, calibrate_scores_noise
from fedslm.privacy.mechanism import DEFAULT_MAX_PARAMETERS
from fedslm.secagg.terms import default_colluders

Population = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A plan and the initial adapter whose hash it holds.

    Attributes:
      initial: every array of the adapter, float32 by PEFT name.
      description: the content of `adapter_config.json`.
    """

    plan: Plan
    initial: dict[str, np.ndarray[Any, Any]]
    description: dict[str, Any]


def draft_plan(config: FederationConfig, population: Population, *, seed: int | None) -> Draft:
    """Makes a run's plan.

    Args:
      population: declared number of privacy units by hospital name, in plan order.
      seed: of a simulation; None draws nonce and initial adapter from the operating system.
    Raises:
      ConfigError: too few hospitals, or too few for what secure aggregation is to promise. PrivacyError: delta too
        large, or epsilon out of reach. ModelError: no such model.
    """
    is_masked = config.secagg.mode == "masked"
    check_hospitals(tuple(population), min_cohort=least_cohort(config, len(population)), masked=is_masked)
    secagg = _secagg(config, len(population))
    if config.privacy.mode == "local":
        for name, units in population.items():
            check_delta(config.privacy.delta, population=units, hospital=name)
    secret = secrets.token_bytes(32) if seed is None else hashlib.sha256(f"fedslm simulation {seed}".encode()).digest()
    base = load_base(config.model)
    adapter = Adapter(base, config.adapter)
    adapter.initialise(secret)
    trained, frozen = adapter.arrays(trained=True), adapter.arrays(trained=False)
    count = sum(array.size for array in trained.values())
    planned = PlannedAdapter(
        method=config.adapter.method,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        targets=adapter.targets,
        initial_sha256=arrays_sha256({**trained, **frozen}),
        frozen_sha256=arrays_sha256(frozen),
        trained_parameters=count,
    )
    shape = describe(
        config.model.source,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        targets=adapter.targets,
        fan_in_fan_out=base.model_type == "gpt2",
    )
    plan = _plan(config, planned, _privacy(config, population, count), _hospitals(config, population), secagg, secret)
    return Draft(plan=plan, initial={**trained, **frozen}, description=shape)


def alone(plan: Plan, names: tuple[str, ...], *, population: int, name: str) -> Plan:
    """The same plan for one hospital by itself: what a comparison trains with, at the same privacy.

    It is in the clear: there is nobody to hide one update among. So it releases no scores.

    Args:
      names: whose records it stands for (one hospital, or all of them pooled); goes into the nonce.
      population: declared units of those records together.
    """
    hospital = PlannedHospital(name=name, declared_population=population, weight=1.0)
    nonce = hashlib.sha256(f"{plan.nonce} alone {names}".encode()).hexdigest()[:32]
    privacy = _allowed(plan, population)
    return dataclasses.replace(plan, nonce=nonce, privacy=privacy, hospitals=(hospital,), min_cohort=1, secagg=None)


def _allowed(plan: Plan, population: int) -> PlannedPrivacy:
    """The plan's privacy where so many units are in one place: a lower delta may be needed, and more noise for it."""
    privacy = dataclasses.replace(plan.privacy, scores=None)
    largest = 1 / (100 * population)
    if privacy.mode == "none" or privacy.epsilon is None or privacy.delta <= largest:
        return privacy
    delta = floor_delta(largest)
    sigma = calibrate_noise_multiplier(
        epsilon=privacy.epsilon,
        delta=delta,
        sample_rate=privacy.sample_rate,
        steps=privacy.max_sessions * plan.training.local_steps,
        declared_population=population,
        max_parameters=max(plan.adapter.trained_parameters, DEFAULT_MAX_PARAMETERS),
    )
    return dataclasses.replace(privacy, delta=delta, noise_multiplier=max(sigma, privacy.noise_multiplier))


def _plan(
    config: FederationConfig,
    adapter: PlannedAdapter,
    privacy: PlannedPrivacy,
    hospitals: tuple[PlannedHospital, ...],
    secagg: PlannedSecAgg | None,
    secret: bytes,
) -> Plan:
    training = PlannedTraining(
        rounds=config.rounds,
        local_steps=config.training.local_steps,
        learning_rate=config.training.learning_rate,
        optimizer=config.training.optimizer,
        proximal_mu=proximal_mu(config.strategy),
    )
    return Plan(
        version=3,
        nonce=hashlib.sha256(b"nonce" + secret).hexdigest()[:32],
        model=config.model,
        adapter=adapter,
        privacy=privacy,
        training=training,
        strategy=config.strategy,
        hospitals=hospitals,
        min_cohort=least_cohort(config, len(hospitals)),
        secagg=secagg,
        deadline_s=config.deadline_s,
    )


def _privacy(config: FederationConfig, population: Population, parameters: int) -> PlannedPrivacy:
    asked = config.privacy
    sessions = config.rounds + asked.extra_sessions
    sigma = 0.0
    if asked.mode == "local" and asked.epsilon is not None:
        sigma = calibrate_noise_multiplier(
            epsilon=asked.epsilon,
            delta=asked.delta,
            sample_rate=asked.sample_rate,
            steps=sessions * config.training.local_steps,
            declared_population=max(population.values()),
            max_parameters=max(parameters, DEFAULT_MAX_PARAMETERS),
        )
    return PlannedPrivacy(
        mode=asked.mode,
        epsilon=asked.epsilon,
        delta=asked.delta,
        unit=asked.unit,
        clip_norm=asked.clip_norm,
        noise_multiplier=sigma,
        sample_rate=asked.sample_rate,
        max_records_per_unit=asked.max_records_per_unit,
        max_records_per_patient=asked.max_records_per_patient,
        max_sessions=sessions,
        scores=_scores(asked, sessions),
    )


def _scores(asked: PrivacyConfig, sessions: int) -> PlannedScores | None:
    if asked.scores == "none" or asked.epsilon is None:
        return None
    sigma = calibrate_scores_noise(epsilon=asked.epsilon, delta=asked.delta, sessions=sessions)
    return PlannedScores(noise_multiplier=sigma)


def least_cohort(config: FederationConfig, hospitals: int) -> int:
    """The plan's `min_cohort`: as asked for, or the fewest whose sum hides one among `honest` from the colluders.

    Raises:
      ConfigError: there are not so many hospitals.
    """
    if config.min_cohort is not None:
        return config.min_cohort
    if config.secagg.mode == "none":
        return 2
    colluders, honest = _colluders(config, hospitals), config.secagg.honest
    if colluders + honest > hospitals >= MIN_MASKED_HOSPITALS:
        raise ConfigError(
            f"secagg.colluders={colluders} with secagg.honest={honest} needs {colluders + honest} hospitals in every sum, but "
            f"there are {hospitals}; lower one of the two."
        )
    return max(MIN_MASKED_HOSPITALS, colluders + honest)


def _colluders(config: FederationConfig, hospitals: int) -> int:
    asked = config.secagg.colluders
    return default_colluders(hospitals) if asked is None else asked


def _secagg(config: FederationConfig, hospitals: int) -> PlannedSecAgg | None:
    asked = config.secagg
    if asked.mode == "none":
        return None
    colluders, least = _colluders(config, hospitals), least_cohort(config, hospitals)
    # Here already, though the plan does it again: before a model is loaded and noise is calibrated.
    check_masking(hospitals=hospitals, min_cohort=least, colluders=colluders, honest=asked.honest)
    return PlannedSecAgg(
        colluders=colluders,
        honest=asked.honest,
        ring_bits=asked.ring_bits,
        value_range=asked.value_range,
        step_deadline_s=asked.step_deadline_s,
    )


def _hospitals(config: FederationConfig, population: Population) -> tuple[PlannedHospital, ...]:
    largest = max(population.values())
    uniform = config.training.weights == "uniform"
    return tuple(
        PlannedHospital(name=name, declared_population=units, weight=1.0 if uniform else units / largest)
        for name, units in population.items()
    )
