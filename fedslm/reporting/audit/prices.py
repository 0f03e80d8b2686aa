"""What sessions cost, one after the other, and what the noise itself says of an attacker's odds.

The accountant is loaded when a price is asked for, not before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from fedslm.errors import PrivacyError
from fedslm.privacy.ledger import Account
from fedslm.privacy.mechanism import Mechanism
from fedslm.reporting.audit.odds import guess, recognised

_DELTAS = (1e-3, 1e-2, 3e-2, 0.1, 0.2)


class SessionPrices:
    """Epsilon of the first n sessions of a plan in a ledger.

    A plan of many sessions is priced at some of them; one in between takes the price of the next, which is not less.

    Args:
      samples: at how many of them at most; each takes some 40 ms.
    """

    def __init__(self, account: Account, *, samples: int) -> None:
        booked = len(account.sessions)
        step = max(1, math.ceil(booked / samples))
        self._account = account
        self._samples = sorted({booked, *range(step, booked + 1, step)} - {0})
        self._known = self._compute()

    def spent(self, sessions: int) -> float:
        """Epsilon of that many booked sessions, never more than the ledger charges; math.inf where nothing bounds it."""
        return 0.0 if sessions == 0 else next(self._known[at] for at in self._samples if at >= sessions)

    def _compute(self) -> dict[int, float]:
        reserved, closed = self._account.reserved, self._account.closed
        if reserved.epsilon is None:
            return dict.fromkeys(self._samples, math.inf)
        if not self._samples:
            return {}
        from fedslm.privacy.accounting import EpsilonCurve

        curve = EpsilonCurve(reserved.mechanism(), delta=reserved.delta)
        limit = reserved.epsilon if closed is None or closed.epsilon is None else closed.epsilon
        known = {sessions: min(curve.epsilon(sessions), limit) for sessions in self._samples}
        return known if closed is None else known | {len(self._account.sessions): limit}


def charged_sessions(account: Account) -> int:
    """For how many sessions a plan is charged: all that were reserved while it is open, those booked afterwards."""
    return account.reserved.max_sessions if account.is_open else len(account.sessions)


def finite(epsilon: float) -> float | None:
    """Epsilon as JSON has it: None for no bound."""
    return None if math.isinf(epsilon) else epsilon


def odds(epsilon: float | None, delta: float) -> dict[str, float]:
    """`guess` and `recognised` for a pair; epsilon None is no bound."""
    bound = math.inf if epsilon is None else epsilon
    return {"guess": guess(bound, delta), "recognised": recognised(bound, delta)}


def odds_by_noise(
    runs: Sequence[tuple[Mechanism, int]], *, pair: tuple[float, float], extra: tuple[float, float] = (0.0, 0.0)
) -> dict[str, float]:
    """The same odds from the noise itself, which are smaller than what one pair of epsilon and delta can say.

    The runs together are (epsilon, delta)-private for many pairs at once, each found as a ledger finds its own: priced at one
    delta, and added up. Every pair bounds the odds, so the smallest bound does.

    Args:
      runs: mechanisms and for how many sessions each.
      pair: epsilon and delta of everything as they are charged.
      extra: epsilon and delta that are to be added for what no mechanism is known of.
    """
    pairs = [pair]
    for delta in _DELTAS:
        with suppress(PrivacyError):  # no figure at this delta; the others bound the odds all the same
            pairs.append(_priced(runs, delta, extra))
    return {
        "guess": min(guess(epsilon, delta) for epsilon, delta in pairs),
        "recognised": min(recognised(epsilon, delta) for epsilon, delta in pairs),
    }


def _priced(runs: Sequence[tuple[Mechanism, int]], delta: float, extra: tuple[float, float]) -> tuple[float, float]:
    """Epsilon where each run may miss it with probability `delta`, and what these add up to."""
    from fedslm.privacy.accounting import EpsilonCurve

    known = {(run, sessions): EpsilonCurve(run, delta=delta).epsilon(sessions) for run, sessions in set(runs)}
    return math.fsum([extra[0], *(known[run] for run in runs)]), min(1.0, extra[1] + len(runs) * delta)
