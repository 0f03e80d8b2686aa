"""Ledgers made by hand, with their signatures and receipts, for tests of the audit verbs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fedslm.crypto.identity import Identity
from fedslm.encoding import sha256_hex
from fedslm.governance.plan import Plan
from fedslm.governance.receipt import Receipt, sign_head
from fedslm.privacy.accounting import epsilon_spent
from fedslm.privacy.ledger import Booked, Closed, Data, Entry, Export, Forfeited, Ledger, Opened, Reserved
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.planned import planned_reservation

NAMES = ("north", "south", "west")
COORDINATOR = " ".join(["12345"] * 12)
SHAPE: dict[str, Any] = {"sample_rate": 0.05, "clip_norm": 1.0, "steps": 2, "declared_population": 400}


def identity(number: int) -> Identity:
    """The same each time for the same number."""
    return Identity.from_seeds(bytes([number]) * 32, bytes([number]) * 32)


KEYS = {name: identity(place) for place, name in enumerate(NAMES, 1)}
price = functools.lru_cache(maxsize=None)(epsilon_spent)


class Book:
    """A hospital that keeps its ledger in memory and signs every row."""

    def __init__(self, hospital: str = "north", *, unit: str = "patient", population: str = "patients") -> None:
        self.hospital, self.unit, self.key = hospital, unit, KEYS[hospital]
        self.ledger = Ledger()
        self.now = datetime(2026, 1, 31, 23, 30)
        self.signatures: list[tuple[int, bytes]] = []
        self.receipts: list[Receipt] = []
        nonce = hashlib.sha256(f"{hospital}/{population}".encode()).hexdigest()[:32]
        identity = self.key.public.to_bytes().hex()
        self.add(Opened(hospital=hospital, population=population, unit=unit, identity=identity, nonce=nonce))

    def add(self, entry: Entry, *, hours: float = 5.0) -> None:
        """Adds a row and signs it."""
        self.now += timedelta(hours=hours)
        row = self.ledger.check(entry, f"{self.now:%Y-%m-%dT%H:%M:%SZ}")
        self.ledger.add(row)
        self.signatures.append((row.number, sign_head(self.key, self.ledger.head, hospital=self.hospital)))

    def see_data(self) -> None:
        self.add(Data(fingerprint="d" * 64))

    def reserve(
        self, name: str = "first", *, sessions: int = 6, sigma: float = 2.0, scores: float | None = None, **changes: Any
    ) -> str:
        """Approves a plan of that name; its hash. `scores` is the noise on scores, `changes` replace fields of the row."""
        per_unit = 1 if self.unit == "record" else 3
        noise = {"noise_multiplier": sigma, "scores_noise_multiplier": scores}
        mechanism = Mechanism(unit=self.unit, max_records_per_unit=per_unit, **noise, **SHAPE)
        entry = Reserved(
            plan=sha256_hex(name.encode()),
            event="dp-sgd/1" if scores is None else "dp-sgd+scores/1",
            unit=self.unit,
            **noise,
            max_records_per_unit=per_unit,
            max_records_per_patient=None,
            max_parameters=mechanism.max_parameters,
            max_sessions=sessions,
            epsilon=price(mechanism, sessions=sessions, delta=1e-6),
            delta=1e-6,
            budget_epsilon=8.0,
            budget_delta=2.5e-5,
            coordinator=COORDINATOR,
            **SHAPE,
        )
        self.add(dataclasses.replace(entry, **changes))
        return entry.plan

    def reserve_without_privacy(self, name: str = "none", *, sessions: int = 3) -> str:
        """Approves a plan without privacy; its hash."""
        changes = {"event": "none", "epsilon": None, "noise_multiplier": 0.0, "budget_epsilon": None, "coordinator": ""}
        return self.reserve(name, sessions=sessions, **changes)

    def approve(self, plan: Plan) -> str:
        """Approves a real plan; its hash."""
        self.add(
            planned_reservation(plan, self.hospital, coordinator=COORDINATOR, budget_epsilon=8.0, budget_delta=2.5e-5)
        )
        return plan.sha256

    def book(self, plan: str, sessions: int = 1) -> None:
        """Books the next sessions of a plan, and gives receipts."""
        for _ in range(sessions):
            session = 1 + max(self.ledger.plans[plan].sessions, default=0)
            self.add(Booked(plan=plan, session=session))
            head = self.ledger.head
            self.receipts.append(Receipt.sign(self.key, hospital=self.hospital, head=head, run=plan, session=session))

    def close(self, plan: str, *, discount: float = 0.0) -> None:
        """Closes a plan at what it came to, less a discount that no honest hospital takes."""
        account = self.ledger.plans[plan]
        booked, reserved = len(account.sessions), account.reserved
        epsilon: float | None = 0.0
        if booked:
            spent = reserved.epsilon and price(reserved.mechanism(), sessions=booked, delta=reserved.delta)
            epsilon = spent and min(spent, reserved.epsilon or spent) - discount
        self.add(Closed(plan=plan, sessions=booked, epsilon=epsilon))

    def forfeit(self, *, rows: int = 4, epsilon: float | None = 1.25) -> None:
        """Counts rows as lost that would have come next."""
        head = self.ledger.head
        lost = Forfeited(ledger=head.ledger, row=head.row + rows, sha256="e" * 64, epsilon=epsilon, delta=1e-6)
        self.add(lost)

    def export(self) -> Export:
        return Export(rows=self.ledger.rows, signatures=tuple(self.signatures))

    def save(self, path: Path) -> Path:
        """Writes what `fedslm ledger export` writes."""
        path.write_bytes(self.export().to_bytes())
        return path

    def save_receipts(self, path: Path) -> Path:
        """Writes what a coordinator's run folder has."""
        path.write_bytes(b"".join(receipt.to_bytes() + b"\n" for receipt in self.receipts))
        return path


def full_book(hospital: str = "north") -> Book:
    """Two plans, one closed early and one under way, and a change of the records in between."""
    book = Book(hospital)
    book.see_data()
    first = book.reserve("first", sessions=6)
    book.book(first, 4)
    book.close(first)
    second = book.reserve("second", sessions=5, sigma=1.5)
    book.book(second, 2)
    return book
