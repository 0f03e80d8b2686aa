"""Entries and ledgers made by hand, for tests that need one and no hospital."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedslm.crypto.identity import Identity
from fedslm.governance.receipt import sign_head
from fedslm.privacy.ledger import Booked, Closed, Entry, Export, Ledger, Opened, Reserved

KEY = Identity.from_seeds(b"h" * 32, b"h" * 32)
MALLORY = Identity.from_seeds(b"m" * 32, b"m" * 32)
TIME = "2026-11-22T23:11:18Z"


def plan(number: int) -> str:
    """A plan's hash."""
    return f"{number:064x}"


def opened(**changes: Any) -> Opened:
    fields: dict[str, Any] = {"hospital": "hospital-0", "population": "patients", "unit": "patient", "nonce": "0" * 32}
    return Opened(**({**fields, "identity": KEY.public.to_bytes().hex()} | changes))


def reserved(number: int = 1, **changes: Any) -> Reserved:
    """Plan `number`: three sessions, epsilon 2 of 8, delta 1e-6 of 1e-4."""
    fields: dict[str, Any] = {
        "plan": plan(number),
        "event": "dp-sgd/1",
        "unit": "patient",
        "sample_rate": 0.25,
        "clip_norm": 1.0,
        "noise_multiplier": 1.5,
        "steps": 2,
        "declared_population": 40,
        "max_records_per_unit": 4,
        "max_records_per_patient": None,
        "max_parameters": 10_000_000,
        "scores_noise_multiplier": None,
        "max_sessions": 3,
        "epsilon": 2.0,
        "delta": 1e-6,
        "budget_epsilon": 8.0,
        "budget_delta": 1e-4,
        "coordinator": "",
    }
    return Reserved(**(fields | changes))


def unbounded(number: int = 1, **changes: Any) -> Reserved:
    """Plan `number` without privacy, where the budget allows that."""
    fields = {"event": "none", "epsilon": None, "noise_multiplier": 0.0, "budget_epsilon": None}
    return reserved(number, **(fields | changes))


def booked(number: int, session: int) -> Booked:
    return Booked(plan=plan(number), session=session)


def closed(number: int, sessions: int, epsilon: float | None) -> Closed:
    return Closed(plan=plan(number), sessions=sessions, epsilon=epsilon)


def ledger_of(*entries: Entry, opening: Opened | None = None) -> Ledger:
    """A ledger with these entries after its opening."""
    ledger = Ledger()
    for entry in (opening or opened(), *entries):
        ledger.add(ledger.check(entry, TIME))
    return ledger


def signed(ledger: Ledger, *, key: Identity = KEY, rows: Iterable[int] | None = None) -> Export:
    """The ledger's export, signed where it has to be, or at these rows."""
    needed = {row.number for row in ledger.rows if isinstance(row.entry, Booked)} | {ledger.head.row}
    numbers = sorted(needed) if rows is None else rows
    heads = [ledger.head_of(number) for number in numbers]
    signatures = [(head.row, sign_head(key, head, hospital=ledger.opened.hospital)) for head in heads]
    return Export(rows=ledger.rows, signatures=tuple(signatures))
