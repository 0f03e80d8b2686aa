"""What (epsilon, delta) lets anybody learn about one unit, as chances that a person can picture.

Worst cases over every attacker: one that knows all other records, sees all that was sent, and computes without limit.
"""

from __future__ import annotations

import math

FALSE_ALARMS = 0.01
"""The share of outsiders that an attacker is willing to accuse wrongly, wherever one is named."""


def guess(epsilon: float, delta: float) -> float:
    """The chance to guess right whether one unit took part, for somebody who would otherwise toss a coin.

    Args:
      epsilon: at least 0; math.inf where there is no bound.
      delta: in [0, 1).

    Returns:
      From 0.5 (nothing is learned) to 1.0 (no bound).

    Source: Kairouz et al. 2015, arXiv 1311.0776, Thm 2.1: (1 + TV) / 2 with TV <= (e^eps - 1 + 2 delta) / (e^eps + 1).
    """
    shrunk = math.exp(-epsilon)  # e^eps itself overflows from 710 on
    return min(1.0, (1.0 + delta * shrunk) / (1.0 + shrunk))


def recognised(epsilon: float, delta: float, false_alarms: float = FALSE_ALARMS) -> float:
    """The share of units that took part and are recognised, at a given share of false alarms (true-positive rate).

    Args:
      epsilon, delta: as in `guess`.
      false_alarms: share of units that took no part and are accused all the same, in [0, 1].

    Returns:
      From `false_alarms` (no better than chance) to 1.0 (no bound).

    Source: Kairouz et al. 2015, arXiv 1311.0776, Thm 2.1, both inequalities.
    """
    shrunk = math.exp(-epsilon)
    by_alarms = math.exp(min(epsilon, 700.0)) * false_alarms + delta
    by_misses = 1.0 - shrunk * (1.0 - delta - false_alarms)
    return max(0.0, min(1.0, by_alarms, by_misses))
