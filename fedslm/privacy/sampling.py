"""Who takes part in a step: the Poisson draw over privacy units, and which of a unit's records are used.

Both come from the cryptographic stream. Shuffling, or a batch of fixed size, would not match what the accountant books.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedslm.errors import PrivacyError

if TYPE_CHECKING:
    from fedslm.crypto.prg import SecureStream


def poisson_sample(units: int, *, sample_rate: float, stream: SecureStream) -> npt.NDArray[np.int64]:
    """Draws each unit independently with the same probability.

    Args:
      units: how many units there are; private, it only sets how many coins are tossed.
      sample_rate: probability q in (0, 1], a constant of the plan.
      stream: source of the coins.

    Returns:
      The drawn units in increasing order, int64 (drawn,); often empty where q is small.

    Guarantees: every unit is drawn with probability q to within 2^-64, independently of all others; at q = 1 all are.

    Raises:
      PrivacyError: a rate outside (0, 1].
    """
    if not 0.0 < sample_rate <= 1.0:
        raise PrivacyError(f"The sample rate is {sample_rate}; it has to lie in (0, 1], so set it in the plan.")
    if sample_rate == 1.0:
        return np.arange(units, dtype=np.int64)
    # Exact: multiplying a float by 2^64 only moves its exponent, and Python's int() takes all of it.
    threshold = np.uint64(int(sample_rate * 2.0**64))
    return np.flatnonzero(stream.uint64(units) < threshold).astype(np.int64)


def choose_records(
    record_indices: npt.NDArray[np.int64], *, max_records_per_unit: int, stream: SecureStream
) -> npt.NDArray[np.int64]:
    """Picks at most `max_records_per_unit` records of one unit, uniformly and without replacement.

    Args:
      record_indices: the unit's records, int64 (records,).
      max_records_per_unit: the cap, at least 1.
      stream: source of the choice.

    Returns:
      The chosen records in their given order, int64 (at most the cap,).

    Raises:
      PrivacyError: a cap below 1.
    """
    if max_records_per_unit < 1:
        raise PrivacyError(f"A unit may use {max_records_per_unit} records; the cap has to be at least 1.")
    if len(record_indices) <= max_records_per_unit:
        return record_indices.copy()
    # Ranks of independent 64-bit keys are a uniform permutation but for ties, which have odds below n^2 / 2^65.
    ranked = np.argsort(stream.uint64(len(record_indices)), kind="stable")
    return record_indices[np.sort(ranked[:max_records_per_unit])]
