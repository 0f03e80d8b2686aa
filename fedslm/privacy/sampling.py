"""Who takes part in a step: the Poisson draw over privacy units, and which of a unit's records are used.

Both come from the cryptographic stream. Shuffling, or a batch of fixed size, would not match what the accountant books.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedslm.errors import PrivacyError

if TYPE_CHECKING:
    from fedslm.crypto.prg import SecureStream


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonSampler:
    """Draws the units of a step, and the records of a drawn unit.

    Attributes:
      sample_rate: probability q in (0, 1] that a unit takes part in a step; a constant of the plan.
      max_records_per_unit: records of one unit used in a step, at least 1.

    Raises:
      PrivacyError: a rate outside (0, 1] or a cap below 1.
    """

    sample_rate: float
    max_records_per_unit: int

    def __post_init__(self) -> None:
        check_sample_rate(self.sample_rate)
        check_count("max_records_per_unit", self.max_records_per_unit)

    def draw(self, units: int, *, stream: SecureStream) -> npt.NDArray[np.int64]:
        """Draws each unit independently with the same probability.

        Args:
          units: how many units there are; private, it only sets how many coins are tossed.
          stream: source of the coins.

        Returns:
          The drawn units in increasing order, int64 (drawn,); often empty where q is small.

        Guarantees: every unit is drawn with probability q, independently of all others: exactly for q of at least
        2^-12, otherwise to within 2^-128; at q = 1 all are.
        """
        if self.sample_rate == 1.0:
            return np.arange(units, dtype=np.int64)
        # Exact: multiplying a float by 2^64 only moves its exponent, and the remainder is a float again.
        whole, rest = divmod(self.sample_rate * 2.0**64, 1.0)
        coins, threshold = stream.uint64(units), np.uint64(int(whole))
        drawn = coins < threshold
        tied = np.flatnonzero(coins == threshold) if rest else np.empty(0, dtype=np.intp)
        drawn[tied] = stream.uint64(len(tied)) < np.uint64(int(rest * 2.0**64))
        return np.flatnonzero(drawn).astype(np.int64)

    def choose(self, records: npt.NDArray[np.int64], *, stream: SecureStream) -> npt.NDArray[np.int64]:
        """Picks at most `max_records_per_unit` records of one unit, uniformly and without replacement.

        Args:
          records: the unit's records, int64 (records,).
          stream: source of the choice.

        Returns:
          The chosen records in their given order, int64 (at most the cap,).
        """
        if len(records) <= self.max_records_per_unit:
            return records.copy()
        # Ranks of independent 64-bit keys are a uniform permutation but for ties, which have odds below n^2 / 2^65. No
        # guarantee rests on it: which records stand for a unit may depend on that unit in any way.
        ranked = np.argsort(stream.uint64(len(records)), kind="stable")
        return records[np.sort(ranked[: self.max_records_per_unit])]


def check_sample_rate(sample_rate: float) -> None:
    """Refuses a sample rate outside (0, 1].

    Raises:
      PrivacyError: as said.
    """
    if not 0.0 < sample_rate <= 1.0:
        raise PrivacyError(
            f"sample_rate is {sample_rate}; it has to lie in (0, 1], so divide the wanted batch by the population."
        )


def check_count(name: str, value: int) -> None:
    """Refuses a count that is not a whole number of at least 1.

    Raises:
      PrivacyError: as said.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PrivacyError(f"{name} is {value!r}; it has to be a whole number of at least 1, so correct the plan.")
