"""Scores of held-out patients: the one number about private data that leaves a hospital besides its update, and how.

A patient's right answers less their wrong ones, over the questions asked, is r in [-1, 1]. A hospital adds up (r, 1) / sqrt(2)
over its held-out patients, which any one of them moves by 1 at most, and adds Gaussian noise: one release of
`Mechanism.scoring`. Both numbers then travel within the masked vector. The coordinator reads their sums over all hospitals,
and from those an accuracy. Right answers count from -1 and not from 0, because the ratio of the two numbers is then near 0
for an accuracy of a half, where the noise of the second one hardly tells: an accuracy comes out half as noisy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedslm.errors import PrivacyError
from fedslm.governance.plan import Plan
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.noise import GRID_BITS

if TYPE_CHECKING:
    from fedslm.crypto.prg import SecureStream

Numbers = npt.NDArray[np.floating[Any]]

LEAST_COUNT = 3.0
"""A noisy number of patients below so many standard deviations of its noise says nothing: no accuracy is read from it."""

ROOM = 8.0
"""So many standard deviations of noise fit into the fixed point beside everybody's score; what does not fit is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What the hospitals' held-out patients together say of an adapter.

    Attributes:
      value: share of right answers, each patient weighing the same, 0 to 1; None where too few patients were scored to tell
        through the noise.
      stddev: of the noise on it; None with it. How few patients there are is not in it.
    """

    value: float | None
    stddev: float | None


def release_scores(shares: Iterable[float], mechanism: Mechanism, *, stream: SecureStream) -> npt.NDArray[np.float64]:
    """Adds up held-out patients' scores and makes the sum public, with noise. No patients give noise as well.

    Args:
      shares: of each patient who was scored, the share of right answers, 0 to 1.
      mechanism: the hospital's; it releases scores.
      stream: source of the noise, which nothing else has read from.

    Returns:
      float64 (2,), differentially private: the sums of (r, 1) / sqrt(2).

    Guarantees: one release of `mechanism.scoring`. A patient's two numbers are rounded towards zero to the noise's grid and
    added as whole numbers, so one patient moves the sum by 1 at most, exactly.

    Raises:
      PrivacyError: the mechanism releases no scores.
    """
    scoring = mechanism.scoring
    if scoring is None:
        raise PrivacyError("The mechanism releases no scores; set privacy.scores=dp when the run is planned.")
    return scoring.release(_sum(shares), stream=stream)


def _sum(shares: Iterable[float]) -> npt.NDArray[np.float64]:
    whole = math.floor(2.0**GRID_BITS / math.sqrt(2.0))
    right, patients = 0, 0
    for share in shares:
        right += math.trunc((2.0 * min(1.0, max(0.0, share)) - 1.0) * whole)
        patients += whole
    return np.array([right, patients], dtype=np.float64) * 2.0**-GRID_BITS  # exact below 2^53


def score_range(plan: Plan) -> float:
    """The range of a score in the fixed point: a power of two, which has no rounding in float32."""
    noise = _planned_noise(plan) / plan.largest_population
    return float(2.0 ** math.ceil(math.log2(1.0 + ROOM * noise)))


def scaled(released: Numbers, plan: Plan) -> npt.NDArray[np.float64]:
    """What was released as it goes into the masked vector: over the largest declared population, cut to the fixed point."""
    limit = score_range(plan)
    return np.clip(released / plan.largest_population, -limit, limit).astype(np.float64)


def read_accuracy(sums: Numbers, plan: Plan, *, hospitals: int, step: float) -> Accuracy:
    """Reads the accuracy from what a session summed up.

    Args:
      sums: of `scaled` numbers, float (2,).
      hospitals: how many are in the sum.
      step: of the fixed point, whose rounding is noise as well: at most half a step's.
    """
    right, patients = (float(number) * plan.largest_population * math.sqrt(2.0) for number in sums)
    rounding = step * plan.largest_population / 2.0
    noise = math.sqrt(2.0 * hospitals) * math.hypot(_planned_noise(plan), rounding)
    if not patients >= LEAST_COUNT * noise:
        return Accuracy(value=None, stddev=None)
    ratio = min(1.0, max(-1.0, right / patients))
    return Accuracy(value=(1.0 + ratio) / 2.0, stddev=noise * math.hypot(1.0, ratio) / (2.0 * patients))


def _planned_noise(plan: Plan) -> float:
    if plan.privacy.scores is None:
        raise PrivacyError("The plan releases no scores; set privacy.scores=dp when the run is planned.")
    return plan.privacy.scores.noise_multiplier
