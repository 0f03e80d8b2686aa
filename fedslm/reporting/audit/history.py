"""A ledger over time: every row in order for reading, and what was charged and spent after each for drawing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from fedslm.errors import LedgerError
from fedslm.privacy.ledger import Booked, Closed, Data, Forfeited, Ledger, Opened, Reserved, Row
from fedslm.reporting.audit.prices import SessionPrices, finite

_NAMING = (Reserved, Booked, Closed)


def timeline_of(ledger: Ledger, prices: Mapping[str, SessionPrices]) -> Iterator[dict[str, Any]]:
    """Charged and spent after every row that changes one of them: `time`, `charged`, `spent`; None without a bound.

    Args:
      prices: of every plan's sessions.
    """
    charged: dict[str, float] = {}
    spent: dict[str, float] = {}
    booked: dict[str, int] = {}
    seen = (math.nan, math.nan)
    for row in ledger.rows:
        match row.entry:
            case Reserved(plan=plan, epsilon=epsilon):
                charged[plan], booked[plan] = math.inf if epsilon is None else epsilon, 0
            case Booked(plan=plan):
                booked[plan] += 1
                spent[plan] = prices[plan].spent(booked[plan])
            case Closed(plan=plan, epsilon=epsilon):
                charged[plan] = spent[plan] = math.inf if epsilon is None else epsilon
            case Forfeited(epsilon=epsilon):
                charged[str(row.number)] = spent[str(row.number)] = math.inf if epsilon is None else epsilon
        now = (math.fsum(charged.values()), math.fsum(spent.values()))
        if now != seen:
            seen = now
            yield {"time": row.time, "charged": finite(now[0]), "spent": finite(now[1])}


def history_of(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """All rows in order: `first`, `last` (row numbers), `since`, `until`, `what`, `plans`.

    Sessions that follow one another are one entry.

    Raises:
      LedgerError: a kind of row without words.
    """
    for is_booked, group in groupby(rows, key=lambda row: isinstance(row.entry, Booked)):
        found = list(group)
        for each in [found] if is_booked else [[row] for row in found]:
            yield {
                "first": each[0].number,
                "last": each[-1].number,
                "since": each[0].time,
                "until": each[-1].time,
                "what": _what(each),
                "plans": list(dict.fromkeys(row.entry.plan for row in each if isinstance(row.entry, _NAMING))),
            }


def _what(rows: Sequence[Row]) -> str:
    match rows[0].entry:
        case Opened():
            return "Ledger opened"
        case Reserved(max_sessions=sessions):
            return f"Plan approved, {sessions:,} session{'' if sessions == 1 else 's'} set aside:"
        case Booked():
            return f"{len(rows):,} session{'' if len(rows) == 1 else 's'} of plan"
        case Closed():
            return "Plan closed:"
        case Data():
            return "Records used for the first time, or changed"
        case Forfeited(row=row, ledger=ledger):
            return f"Rows up to {row:,} of ledger {ledger[:12]} lost and counted as spent"
    raise LedgerError(f"A row of the kind {type(rows[0].entry).__name__} has no words here; this is a fault of FedSLM.")
