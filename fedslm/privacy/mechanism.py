"""`Mechanism`: everything about one plan's privacy that must never disagree, in one object.

The sampler, the clipper, the noise and the accountant all read the same frozen object: what is done and what is booked
cannot drift apart, and a hospital has no other way to train privately. Every field is a constant of the plan or of the
site file; none may be computed from the data. This module knows no tensors, and the accountant's library is loaded only
when an event is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedslm.errors import PrivacyError
from fedslm.privacy.noise import noised_sum, relative_sensitivity, sampler_delta
from fedslm.privacy.sampling import PoissonSampler, check_count

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from fedslm.crypto.prg import SecureStream

PRIVACY_UNITS = ("patient", "record")
"""Who is protected: a patient with all their records, or a single record."""

DEFAULT_MAX_PARAMETERS = 10_000_000
"""Trainable parameters that the sensitivity allows for, unless a plan says otherwise; costs 3e-6 of the noise."""

MAX_NOISE_MULTIPLIER = 1000.0
"""Beyond this nothing is learned, and the noise would no longer be drawn fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """DP-SGD with Poisson-sampled units, per-unit clipping and Gaussian noise on a grid.

    Attributes:
      unit: the privacy unit, "patient" or "record".
      sample_rate: probability q in (0, 1] that a unit takes part in a step.
      clip_norm: L2 bound C > 0 on one unit's summed gradient, over all trainable tensors together.
      noise_multiplier: standard deviation of the noise in units of the clip norm (sigma > 0).
      steps: DP steps in one session; empty draws count.
      declared_population: public number of units, from which the normaliser follows; not the number found in the data.
      max_records_per_unit: records of one unit used in a step; 1 where the unit is the record.
      max_records_per_patient: where the unit is the record, at most so many of one patient's are trained on at all; None
        where there is no bound, or where the unit is the patient. `patient_epsilon` rests on it, `event` does not: that
        a record is there or not is protected among those trained on; a patient's next one may take a removed one's place.
      max_parameters: public bound on the number of trainable parameters.
      scores_noise_multiplier: where a session also releases scores of held-out patients, the standard deviation of the
        noise on them over the most that one patient changes them; None where it does not. See `scoring`.

    Guarantees: adding or removing one unit changes the sum that is noised by at most `clip_norm` times
    `relative_sensitivity`, which `event` accounts for.

    Raises:
      PrivacyError: a value with which no guarantee can be given; the message names it.

    Source: Abadi et al. 2016, arXiv 1607.00133, Alg. 1, with the add/remove neighbouring relation.
    """

    unit: str
    sample_rate: float
    clip_norm: float
    noise_multiplier: float
    steps: int
    declared_population: int
    max_records_per_unit: int = 1
    max_records_per_patient: int | None = None
    max_parameters: int = DEFAULT_MAX_PARAMETERS
    scores_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in PRIVACY_UNITS:
            raise PrivacyError(f"The privacy unit is {self.unit!r}; choose one of {', '.join(PRIVACY_UNITS)}.")
        _check_positive("clip_norm", self.clip_norm, "set a bound such as 1.0")
        _check_positive("noise_multiplier", self.noise_multiplier, "raise it, or choose privacy=none to train without")
        if self.noise_multiplier > MAX_NOISE_MULTIPLIER:
            raise PrivacyError(
                f"noise_multiplier is {self.noise_multiplier}; it may be at most {MAX_NOISE_MULTIPLIER:g}, beyond which "
                "nothing is learned, so allow a larger epsilon."
            )
        for name in ("steps", "declared_population", "max_parameters"):
            check_count(name, getattr(self, name))
        self._check_records()
        self._check_scores()
        PoissonSampler(sample_rate=self.sample_rate, max_records_per_unit=self.max_records_per_unit)  # checks both

    def _check_records(self) -> None:
        if self.unit == "record" and self.max_records_per_unit != 1:
            raise PrivacyError(
                f"max_records_per_unit is {self.max_records_per_unit}, but has to be 1 where the unit is the record; "
                "set it to 1 or use unit=patient."
            )
        if self.max_records_per_patient is not None:
            check_count("max_records_per_patient", self.max_records_per_patient)
            if self.unit == "patient":
                raise PrivacyError(
                    f"max_records_per_patient is {self.max_records_per_patient}, but is only for the record as unit; a "
                    "patient as unit is protected with all records, so set it to null."
                )

    def _check_scores(self) -> None:
        if self.scores_noise_multiplier is not None and self.unit != "patient":
            raise PrivacyError(
                f"scores_noise_multiplier is {self.scores_noise_multiplier}, but the privacy unit is the {self.unit}; scores "
                "are released by the patient, so use unit=patient or release none."
            )
        _ = self.scoring  # which checks its noise

    @property
    def scoring(self) -> Mechanism | None:
        """What a session does to a held-out patient, as a mechanism of its own; None where no scores are released.

        A patient is held out or trained on for good, never both, so each bears the cost of one of the two mechanisms, and
        the larger one holds for everybody. Every accountant here reads both.

        Guarantees: two numbers with Gaussian noise, everybody taking part. What a patient adds lies on the grid and the
        patients are added in whole numbers (`fedslm/privacy/scores.py`), so the sensitivity is 1 however many there are.
        """
        if self.scores_noise_multiplier is None:
            return None
        return Mechanism(
            unit=self.unit,
            sample_rate=1.0,
            clip_norm=1.0,
            noise_multiplier=self.scores_noise_multiplier,
            steps=1,
            declared_population=1,
            max_parameters=2,
        )

    @property
    def sampler(self) -> PoissonSampler:
        """Who takes part in a step, and with which records."""
        return PoissonSampler(sample_rate=self.sample_rate, max_records_per_unit=self.max_records_per_unit)

    @property
    def expected_batch_size(self) -> float:
        """The public normaliser: sample rate times declared population, never the number of units drawn."""
        return self.sample_rate * self.declared_population

    @property
    def noise_stddev(self) -> float:
        """Absolute standard deviation of the noise on the clipped sum, in the units of the gradient."""
        return self.noise_multiplier * self.clip_norm

    @property
    def accounted_noise_multiplier(self) -> float:
        """The noise multiplier at the true sensitivity, a few millionths below `noise_multiplier`."""
        return self.noise_multiplier / relative_sensitivity(
            parameters=self.max_parameters, units=self.declared_population
        )

    def release(self, clipped_sum: npt.NDArray[np.float64], *, stream: SecureStream) -> npt.NDArray[np.float64]:
        """Makes one step's sum of clipped units public: noise on the grid, over the public expected batch size.

        Args:
          clipped_sum: sum over one draw's units, each of L2 norm at most `clip_norm`; float64 (parameters,). Zeros for
            an empty draw.
          stream: source of the noise, which nothing else has read from at this place.

        Returns:
          float64 (parameters,), differentially private.

        Guarantees: one Gaussian mechanism of `event`.

        Raises:
          PrivacyError: more parameters than `max_parameters`.
        """
        if len(clipped_sum) > self.max_parameters:
            raise PrivacyError(
                f"The adapter trains {len(clipped_sum)} parameters, but the plan's sensitivity allows for "
                f"{self.max_parameters}; raise max_parameters or lower the rank."
            )
        noise = {"clip_norm": self.clip_norm, "noise_multiplier": self.noise_multiplier}
        return noised_sum(clipped_sum, **noise, stream=stream) / self.expected_batch_size

    def sampler_delta(self, sessions: int) -> float:
        """Bounds what the random number generation adds to delta over that many sessions."""
        steps = self.steps * check_sessions(sessions)
        return sampler_delta(normals=steps * self.max_parameters, coins=steps * self.declared_population)

    def event(self, sessions: int) -> DpEvent:
        """Describes the training of that many sessions to an accountant; what scores cost is in `scoring`.

        Args:
          sessions: at least 0.

        Returns:
          steps * sessions times a Poisson-sampled Gaussian, or no operation for 0 sessions; add/remove neighbours.

        Raises:
          PrivacyError: a negative number of sessions.
        """
        import dp_accounting  # a second of import time that plans and ledgers do not need

        steps = self.steps * check_sessions(sessions)
        if steps == 0:
            return dp_accounting.NoOpDpEvent()
        gaussian = dp_accounting.GaussianDpEvent(self.accounted_noise_multiplier)
        sampled = dp_accounting.PoissonSampledDpEvent(self.sample_rate, gaussian)
        return dp_accounting.SelfComposedDpEvent(sampled, steps)


def check_sessions(sessions: int) -> int:
    """Returns the number of sessions, or refuses one that is not a whole number of at least 0.

    Raises:
      PrivacyError: as said.
    """
    if isinstance(sessions, bool) or not isinstance(sessions, int) or sessions < 0:
        raise PrivacyError(f"sessions is {sessions!r}; it has to be a whole number of at least 0, so correct the plan.")
    return sessions


def _check_positive(name: str, value: float, remedy: str) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise PrivacyError(f"{name} is {value}; it has to be finite and above 0: {remedy}.")
