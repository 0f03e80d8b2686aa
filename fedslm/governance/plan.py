"""The run plan: everything that hospitals agree to before a run, as canonical bytes with one hash.

Code does not travel, the plan does. A hospital reads it, approves or refuses it, and takes every setting that touches
privacy from it and from its own site file, never from the data. Nothing in a plan is secret and nothing is computed from
patients' records: counts are declared, rates and bounds are chosen.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedslm.config.schema import (
    STRICT,
    Count,
    FedProxConfig,
    ModelConfig,
    Name,
    Positive,
    PrivacyUnit,
    StrategyConfig,
    build,
    check_masking,
    check_scores,
)
from fedslm.encoding import canonical_bytes, parse_canonical, sha256_hex
from fedslm.errors import ConfigError

PLAN_VERSION = 3
SCORE_NUMBERS = 2  # the held-out patients' right answers less their wrong ones, and how many patients there are
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PlannedHospital:
    """One hospital as the plan knows it.

    Attributes:
      declared_population: patients (or records, where that is the unit) it declares; a constant, not a count.
      weight: its share in the mean, in (0, 1]; a constant.
    """

    name: Name
    declared_population: Count
    weight: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PlannedAdapter:
    """The adapter's shape and the hash of the arrays that every hospital starts from.

    Attributes:
      initial_sha256: `arrays_sha256` of the whole initial adapter, trained and frozen arrays.
      frozen_sha256: the same of the frozen arrays, which stay as they are (empty for method "full").
      trained_parameters: numbers trained and exchanged.
    """

    method: Literal["ffa", "full"]
    rank: Count
    alpha: Positive
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    initial_sha256: Sha256
    frozen_sha256: Sha256
    trained_parameters: Count


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PlannedScores:
    """Scores of held-out patients, which every session releases with noise of their own.

    Attributes:
      noise_multiplier: the noise's standard deviation over the most that one patient changes the two numbers (L2).
    """

    noise_multiplier: Positive


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PlannedPrivacy:
    """The mechanism and what it costs. `mode` "none" promises nothing; the other fields then only shape the sampling.

    Attributes:
      epsilon: bound after `max_sessions` sessions; None without privacy.
      noise_multiplier: sigma, the noise's standard deviation over `clip_norm`; 0 without privacy.
      max_records_per_patient: where the record is the unit, a hospital trains on so many of one patient's at most, so that
        the patient's epsilon can be stated too. None sets no bound, and where the patient is the unit none is needed.
      scores: None where no score leaves a hospital. A patient is held out or trained on, so epsilon bounds either.
    """

    mode: Literal["local", "none"]
    epsilon: Positive | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: PrivacyUnit
    clip_norm: Positive
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    max_records_per_unit: Count
    max_records_per_patient: Count | None
    max_sessions: Count
    scores: PlannedScores | None

    def __post_init__(self) -> None:
        if self.unit == "patient" and self.max_records_per_patient is not None:
            raise ConfigError(
                f"The plan protects the patient and has max_records_per_patient={self.max_records_per_patient}, which bounds "
                "what a patient's records cost where each is protected by itself; plan it again without."
            )
        if self.mode == "local" and (self.noise_multiplier == 0 or self.epsilon is None):
            raise ConfigError(
                "A plan with privacy=local needs a noise_multiplier above 0 and an epsilon; plan it again."
            )


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PlannedTraining:
    """What each hospital does in a round."""

    rounds: Count
    local_steps: Count
    learning_rate: Positive
    optimizer: Literal["sgd", "adam"]
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PlannedSecAgg:
    """Secure aggregation as the hospitals agree to it; each checks these bounds for itself in every session.

    Attributes:
      colluders: T, hospitals that may side with the coordinator without anybody's update being read.
      honest: every sum that is read holds at least so many honest updates, so at least T + honest updates.
      ring_bits: k, sums are taken modulo 2^k. With the fewest bits and the most hospitals 257 levels are left to each.
      value_range: values of an update lie within plus or minus this; what lies outside is cut, much of it refused.
      step_deadline_s: how long the coordinator waits in each step after the training.
    """

    colluders: Annotated[int, Field(ge=0, strict=True)]
    honest: Annotated[int, Field(ge=2, strict=True)]
    ring_bits: Annotated[int, Field(ge=16, le=32, strict=True)]
    value_range: Positive
    step_deadline_s: Positive


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Plan:
    """A run, agreed on.

    Attributes:
      version: of this document's format; another one is refused.
      nonce: tells two runs of equal settings apart; derived from the seed in a seeded simulation.
      min_cohort: fewer hospitals than this in a round are no round.
      secagg: how updates are encrypted. None means the coordinator can read each one.
      deadline_s: how long a round waits for trained updates.
    """

    version: Literal[3]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    model: ModelConfig
    adapter: PlannedAdapter
    privacy: PlannedPrivacy
    training: PlannedTraining
    strategy: StrategyConfig
    hospitals: tuple[PlannedHospital, ...]
    min_cohort: Count
    secagg: PlannedSecAgg | None
    deadline_s: Positive

    def __post_init__(self) -> None:
        names = [hospital.name for hospital in self.hospitals]
        if len(set(names)) != len(names):
            raise ConfigError("The plan names a hospital twice; names must differ.")
        if not 1 <= self.min_cohort <= len(names):
            raise ConfigError(f"The plan's min_cohort={self.min_cohort} but it has {len(names)} hospitals.")
        if self.secagg is not None:
            bounds = {"colluders": self.secagg.colluders, "honest": self.secagg.honest}
            check_masking(hospitals=len(names), min_cohort=self.min_cohort, **bounds)
        if self.privacy.scores is not None:
            ring_bits = None if self.secagg is None else self.secagg.ring_bits
            check_scores(mode=self.privacy.mode, unit=self.privacy.unit, ring_bits=ring_bits)

    def to_bytes(self) -> bytes:
        """The canonical encoding, which is what gets hashed, signed and sent."""
        return canonical_bytes(dataclasses.asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Reads a plan strictly.

        Raises:
          ConfigError: damaged, not canonical, of another version, with an unknown field or an impossible value.
        """
        values = parse_canonical(data)
        if values.get("version") != PLAN_VERSION:
            raise ConfigError(
                f"The plan has version {values.get('version')!r}; this release reads version {PLAN_VERSION}."
            )
        plan = build(cls, values, where="plan: ")
        if plan.to_bytes() != data:  # "1.0" or 1 for 1.0, a default left out: one plan has one hash
            raise ConfigError("The plan is not in canonical form; it was edited or written by something else.")
        return plan

    @property
    def sha256(self) -> str:
        """Hash of the canonical bytes; a hospital approves this."""
        return sha256_hex(self.to_bytes())

    @property
    def run_id(self) -> str:
        """Our own run id, 12 hex digits of the hash: the same plan goes on under it after any restart."""
        return self.sha256[:12]

    @property
    def masked(self) -> bool:
        """Whether the coordinator sees only the sum of the updates."""
        return self.secagg is not None

    @property
    def vector_length(self) -> int:
        """Numbers in the vector that a hospital masks: the trained ones, and those of its scores."""
        return self.adapter.trained_parameters + (0 if self.privacy.scores is None else SCORE_NUMBERS)

    @property
    def largest_population(self) -> int:
        """What the largest hospital declares."""
        return max(hospital.declared_population for hospital in self.hospitals)

    @property
    def names(self) -> tuple[str, ...]:
        """The hospitals' names in plan order."""
        return tuple(hospital.name for hospital in self.hospitals)

    def hospital(self, name: str) -> PlannedHospital:
        """The entry of one hospital.

        Raises:
          ConfigError: the plan does not name it.
        """
        for hospital in self.hospitals:
            if hospital.name == name:
                return hospital
        raise ConfigError(f"The plan does not name the hospital '{name}'; it names {', '.join(self.names)}.")


def proximal_mu(strategy: StrategyConfig) -> float:
    """FedProx's pull, 0 for every other strategy; hospitals take it from the plan, not from a message."""
    return strategy.proximal_mu if isinstance(strategy, FedProxConfig) else 0.0
