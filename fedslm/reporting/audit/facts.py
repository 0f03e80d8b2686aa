"""What verified ledgers say, as plain values: the JSON of `audit verify` and `audit report`, and all that a page shows.

Epsilon None means that there is no bound. Every figure is a ledger's own or computed from it by the accountant that decides.
Every key is explained in `docs/privacy.md`, and a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from fedslm import __version__
from fedslm.governance.plan import Plan
from fedslm.privacy.ledger import Account, Booked, Closed, Forfeited, Ledger, Reserved, Row
from fedslm.reporting.audit.agreed import compare_plans
from fedslm.reporting.audit.history import history_of, timeline_of
from fedslm.reporting.audit.prices import SessionPrices, charged_sessions, finite, odds, odds_by_noise
from fedslm.reporting.audit.verify import Checked, Priced, Verified

YARDSTICK = (0.1, 1.0, 2.0, 4.0, 8.0)
_SAMPLES = 48  # prices of open sessions computed for one ledger's curve; each takes some 40 ms


def verify_facts(verified: Verified) -> dict[str, Any]:
    """What `fedslm audit verify --json` prints."""
    ledgers = [_verified(each, has_receipts=verified.has_receipts) for each in verified.ledgers]
    return {"holds": True, "ledgers": ledgers, "roster_sha256": verified.roster_sha256, "seconds": verified.seconds}


def report_facts(verified: Verified, *, plans: Sequence[Plan], is_disjoint: bool, made: str) -> dict[str, Any]:
    """What `fedslm audit report --json` prints and the page shows.

    Args:
      plans: of those that the ledgers name, any.
      is_disjoint: somebody declares that no patient is in two of the ledgers.
      made: the time of the report, as rows have it.

    Raises:
      ConfigError: a plan is none of the ledgers'. LedgerError: a plan's row says something else than the plan.
    """
    details = compare_plans(verified.ledgers, plans)
    ledgers = [_reported(each, details, has_receipts=verified.has_receipts) for each in verified.ledgers]
    return {
        "made": made,
        "release": __version__,
        "roster_sha256": verified.roster_sha256,
        "has_receipts": verified.has_receipts,
        "receipts": sum(each.receipts for each in verified.ledgers),
        "is_disjoint": is_disjoint,
        "ledgers": ledgers,
        "together": _together(ledgers, is_disjoint=is_disjoint) if len(ledgers) > 1 else None,
        **_yardstick(ledgers),
    }


def _verified(each: Checked, *, has_receipts: bool) -> dict[str, Any]:
    ledger, opened = each.ledger, each.opened
    return {
        "file": each.path.name,
        "hospital": opened.hospital,
        "population": opened.population,
        "unit": opened.unit,
        "ledger": ledger.id,
        "head": {"row": ledger.head.row, "sha256": ledger.head.sha256},
        "rows": len(ledger.rows),
        "signatures": each.signatures,
        "receipts": each.receipts if has_receipts else None,
        "identity": {"fingerprint": opened.key.fingerprint, "source": each.identity},
        "epsilon": finite(ledger.epsilon),
        "delta": ledger.delta,
        "clock_went_back": list(ledger.clock_went_back),
        "plans": [_priced(ledger.plans[price.found.plan], price) for price in each.prices],
    }


def _priced(account: Account, price: Priced) -> dict[str, Any]:
    return {
        "plan": account.reserved.plan,
        "is_open": account.is_open,
        "sessions": len(account.sessions),
        "max_sessions": account.reserved.max_sessions,
        "charged_sessions": price.found.sessions,
        "epsilon": finite(account.epsilon),
        "delta": account.delta,
        "pld": finite(price.found.pld),
        "rdp": finite(price.found.rdp),
        "prv": price.prv,
    }


def _reported(each: Checked, details: Mapping[str, dict[str, Any]], *, has_receipts: bool) -> dict[str, Any]:
    ledger = each.ledger
    facts = _verified(each, has_receipts=has_receipts)
    samples = max(4, _SAMPLES // max(1, len(ledger.plans)))
    prices = {plan: SessionPrices(account, samples=samples) for plan, account in ledger.plans.items()}
    forfeits = [_forfeit(row, row.entry) for row in ledger.rows if isinstance(row.entry, Forfeited)]
    plans = [plan | _dated(ledger, plan, prices[plan["plan"]], details) for plan in facts["plans"]]
    spent = _sum([*(plan["spent_epsilon"] for plan in plans), *(lost["epsilon"] for lost in forfeits)])
    return facts | {
        "opened": ledger.rows[0].time,
        "last": ledger.rows[-1].time,
        "is_bounded": facts["epsilon"] is not None,
        "bounded_epsilon": math.fsum(
            part for part in [*_column(plans, "epsilon"), *_column(forfeits, "epsilon")] if part
        ),
        "spent_epsilon": spent,
        "aside_epsilon": _sum(_column(plans, "aside_epsilon")),
        "patient_epsilon": facts["epsilon"] if ledger.opened.unit == "patient" else _patient_sum(plans, forfeits),
        **_budget(ledger),
        **odds(facts["epsilon"], facts["delta"]),
        "by_noise": _by_noise(ledger),
        "plans": plans,
        "unbounded_plans": [plan["plan"] for plan in plans if plan["epsilon"] is None],
        "has_unbounded_forfeit": None in _column(forfeits, "epsilon"),
        "forfeits": forfeits,
        "timeline": list(timeline_of(ledger, prices)),
        "history": list(history_of(ledger.rows)),
    }


def _dated(
    ledger: Ledger, plan: Mapping[str, Any], prices: SessionPrices, details: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """What a page says of a plan beyond its price: when, how, by whom, and from the plan itself where it was given."""
    account = ledger.plans[plan["plan"]]
    reserved, spent = account.reserved, prices.spent(len(account.sessions))
    rows = [row for row in ledger.rows if getattr(row.entry, "plan", None) == reserved.plan]
    times = {kind: [row.time for row in rows if isinstance(row.entry, kind)] for kind in (Reserved, Booked, Closed)}
    mechanism = ("event", "unit", "sample_rate", "clip_norm", "noise_multiplier", "steps", "declared_population")
    return {
        "reserved_at": times[Reserved][0],
        "first_at": times[Booked][0] if times[Booked] else None,
        "last_at": times[Booked][-1] if times[Booked] else None,
        "closed_at": times[Closed][0] if times[Closed] else None,
        "reserved_epsilon": reserved.epsilon,
        "reserved_delta": reserved.delta,
        "spent_epsilon": finite(spent),
        "aside_epsilon": None if plan["epsilon"] is None else max(0.0, plan["epsilon"] - spent),
        **{name: getattr(reserved, name) for name in mechanism},
        "max_records_per_unit": reserved.max_records_per_unit,
        "scores_noise_multiplier": reserved.scores_noise_multiplier,
        "coordinator": reserved.coordinator,
        "patient": _patient(reserved, plan["charged_sessions"]) if ledger.opened.unit == "record" else None,
        "details": details.get(reserved.plan),
    }


def _patient(reserved: Reserved, sessions: int) -> dict[str, Any]:
    """What a plan means for a patient where the ledger counts by the record."""
    records = reserved.max_records_per_patient
    if sessions == 0:
        return {"records": records, "epsilon": 0.0}
    if records is None or reserved.event == "none":
        return {"records": records, "epsilon": None}
    from fedslm.privacy.accounting import patient_epsilon  # lazy: a second of import time

    found = patient_epsilon(reserved.mechanism(), sessions=sessions, delta=reserved.delta, records=records)
    return {"records": records, "epsilon": finite(found)}


def _patient_sum(plans: Sequence[Mapping[str, Any]], forfeits: Sequence[Mapping[str, Any]]) -> float | None:
    """What all plans together mean for a patient where the unit is the record. Of what was lost, nobody knows."""
    return None if forfeits else _sum([plan["patient"]["epsilon"] for plan in plans])


def _forfeit(row: Row, entry: Forfeited) -> dict[str, Any]:
    lost = {"ledger": entry.ledger, "row": entry.row, "sha256": entry.sha256}
    return lost | {"time": row.time, "at": row.number, "epsilon": entry.epsilon, "delta": entry.delta}


def _budget(ledger: Ledger) -> dict[str, Any]:
    """The budget at the newest approval, each one before it, and what is left; nothing of it before the first plan."""
    rows = [(row, row.entry) for row in ledger.rows if isinstance(row.entry, Reserved)]
    if not rows:
        return {"budget_epsilon": None, "budget_delta": None, "left_epsilon": None, "left_delta": None, "budgets": []}
    budgets = groupby(rows, key=lambda pair: (pair[1].budget_epsilon, pair[1].budget_delta))
    last = rows[-1][1]
    bounded = last.budget_epsilon is not None and math.isfinite(ledger.epsilon)
    return {
        "budget_epsilon": last.budget_epsilon,
        "budget_delta": last.budget_delta,
        "left_epsilon": max(0.0, last.budget_epsilon - ledger.epsilon) if bounded and last.budget_epsilon else None,
        "left_delta": max(0.0, last.budget_delta - ledger.delta),
        "budgets": [
            {"epsilon": epsilon, "delta": delta, "since": next(group)[0].time} for (epsilon, delta), group in budgets
        ],
    }


def _together(ledgers: Sequence[Mapping[str, Any]], *, is_disjoint: bool) -> dict[str, Any]:
    """A patient in all of the ledgers, and where it was declared that there is none, the largest of them."""
    epsilons, deltas = _column(ledgers, "patient_epsilon"), _column(ledgers, "delta")
    total = {"epsilon": _sum(epsilons), "delta": math.fsum(deltas)}
    largest = {"epsilon": None if None in epsilons else max(epsilons), "delta": max(deltas)}
    return {"sum": _with_odds(total), "maximum": _with_odds(largest) if is_disjoint else None}


def _with_odds(pair: dict[str, Any]) -> dict[str, Any]:
    return pair | odds(pair["epsilon"], pair["delta"])


def _yardstick(ledgers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Other epsilons to compare with, and where there is one ledger its own among them."""
    delta = max([*_column(ledgers, "delta"), 0.0]) or 1e-6
    named: dict[float, str] = {}
    if len(ledgers) == 1 and ledgers[0]["epsilon"]:
        named[ledgers[0]["epsilon"]] = "charged so far"
    rows = [{"epsilon": each, "name": named.get(each), **odds(each, delta)} for each in sorted({*YARDSTICK, *named})]
    return {"yardstick": rows, "yardstick_delta": delta}


def _by_noise(ledger: Ledger) -> dict[str, float] | None:
    """The odds by the noise of everything charged; None without a bound."""
    if math.isinf(ledger.epsilon):
        return None
    runs = [(each.reserved.mechanism(), charged_sessions(each)) for each in ledger.plans.values() if each.epsilon > 0]
    lost = [row.entry for row in ledger.rows if isinstance(row.entry, Forfeited)]
    extra = math.fsum(entry.epsilon or 0.0 for entry in lost), math.fsum(entry.delta for entry in lost)
    return odds_by_noise(runs, pair=(ledger.epsilon, ledger.delta), extra=extra)


def _sum(values: Sequence[float | None]) -> float | None:
    """Epsilons added; None, no bound, if one of them is None."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]
