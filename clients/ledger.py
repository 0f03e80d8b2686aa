"""The ledger of one population, enforced where the patients' records are: what was promised, spent and is left.

A plan's whole cost is reserved when the plan is approved; each session is booked before its first step. A crash can only
have booked too much. The coordinator has no way to undo, reset or skip any of it. What a row means, and which rows may
follow which, is in `fedslm/privacy/ledger.py`, which auditors use as well; here it is kept, signed and defended against
being set back.
"""

from __future__ import annotations

import datetime
import math
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.agreement import own_identity
from clients.anchor import read_anchor, write_anchor
from clients.database import Database, open_database, reading_only
from clients.heads import claims
from clients.site import Site
from fedslm.crypto.identity import Identity
from fedslm.errors import BudgetExceededError, LedgerError, RollbackError, RunError
from fedslm.governance.plan import Plan
from fedslm.governance.receipt import Head, sign_head
from fedslm.privacy.ledger import Account, Export, Ledger
from fedslm.privacy.ledger_rows import Booked, Closed, Data, Entry, Forfeited, Opened, Row
from fedslm.privacy.planned import planned_reservation

Clock = Callable[[], datetime.datetime]

LEAST_DIGITS = 8
"""Of a plan's hash, so that nobody closes a plan by mistake."""


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class LedgerBook:
    """A population's ledger in its database.

    Args:
      now: says what time it is; only told, never relied on.

    Guarantees:
      Rows are only ever added. Nothing is added while the ledger is behind the anchor, or behind a head that this hospital
      signed and was shown.
      What all plans reserved stays within the site file's budget, whichever of several processes comes first.
      Every booking is signed, on the disk, and noted in the anchor before `book` returns.

    Raises, from every method: LedgerError where the ledger is damaged, another population's, hospital's or key's;
    RollbackError where it is behind; RunError where the disk fails.
    """

    def __init__(self, database: Database, *, site: Site, identity: Identity, now: Clock = _utc_now) -> None:
        self._database = database
        self._site = site
        self._identity = identity
        self._anchor = site.home().anchor_file
        self._now = now

    # --- spending -------------------------------------------------------------------------------------------------

    def reserve(self, plan: Plan, *, coordinator: str) -> Head:
        """Reserves all that a plan may cost; one that is reserved already is left as it is.

        Args:
          coordinator: fingerprint of the key that signed the plan; "" for a plan in the clear.
        Returns:
          The newest row.
        Raises:
          BudgetExceededError: the budget does not cover it, or the plan was closed.
        """
        with self._writing() as (db, ledger):
            self._reserve(db, ledger, plan, coordinator)
        return self._note_anchor()

    def book(
        self, plan: Plan, *, coordinator: str, session: int | None = None, along: Callable[[], None] = lambda: None
    ) -> Head:
        """Books one session of a plan, which is reserved where it was not.

        Args:
          session: its number in the run; None takes the one after the last.
          along: is called within the transaction, before the booking: what it writes to the same database is written with
            it or not at all, and what it raises books nothing.
        Returns:
          The row of the session.
        Raises:
          BudgetExceededError: the budget does not cover the plan, or the plan the session.
        """
        with self._writing() as (db, ledger):
            along()
            self._reserve(db, ledger, plan, coordinator)
            number = 1 + max(ledger.plans[plan.sha256].sessions, default=0) if session is None else session
            head = self._append(db, ledger, Booked(plan=plan.sha256, session=number), is_signed=True)
        self._note_anchor()
        return head

    def close(self, plan: str) -> Account:
        """Ends a plan for good, and prices it at the sessions that were started.

        Args:
          plan: SHA-256 of the plan, or the first digits of it.
        Raises:
          LedgerError: no such plan is open. PrivacyError: the two accountants contradict each other.
        """
        with self._writing() as (db, ledger):
            account = _find(ledger, plan)
            entry = Closed(plan=account.reserved.plan, sessions=len(account.sessions), epsilon=_repriced(account))
            self._append(db, ledger, entry, is_signed=True)
        self._note_anchor()
        return ledger.plans[account.reserved.plan]

    def see_data(self, fingerprint: str) -> None:
        """Adds a row where the records are not those of the newest such row.

        Args:
          fingerprint: 64 hex digits, keyed: it tells nobody else anything.
        """
        with self._writing() as (db, ledger):
            seen = [row.entry.fingerprint for row in ledger.rows if isinstance(row.entry, Data)]
            if seen[-1:] == [fingerprint]:
                return
            self._append(db, ledger, Data(fingerprint=fingerprint))
        self._note_anchor()

    # --- looking --------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """The newest row of a ledger that is not behind."""
        with self._writing() as (_, ledger):
            return ledger.head

    def read(self) -> Ledger:
        """The ledger as it is, behind or not; it must be this hospital's and undamaged.

        Raises:
          LedgerError: there is none.
        """
        with self._database.reading() as db:
            return self._own(db)

    def problem(self) -> str:
        """Why nothing may be spent at present, as a sentence; "" where all is well."""
        try:
            self.head()
        except (LedgerError, RunError) as error:
            return str(error)
        return ""

    def export(self) -> Export:
        """All rows and signatures, the newest row signed: what an auditor gets."""
        with self._writing() as (db, ledger):
            if _signature(db, ledger.head.row) is None:
                self._sign(db, ledger.head)
            signatures = db.execute("SELECT number, signature FROM signatures ORDER BY number").fetchall()
            return Export(rows=tuple(ledger.rows), signatures=tuple(signatures))

    # --- restoring ------------------------------------------------------------------------------------------------

    def restore(self, export: Export | None, *, forfeits: bool) -> tuple[int, tuple[Forfeited, ...]]:
        """Brings a ledger that is behind up to date: from an export of its own, else by counting the budget as spent.

        Args:
          export: rows that this hospital signed; None where there is none.
          forfeits: whether the rest of the budget is given up for rows that do not come back.
        Returns:
          How many rows came back, and what was forfeited for rows that did not.
        Raises:
          LedgerError: the export is another ledger's, altered, or contradicts what is here.
          RollbackError: rows are still missing and `forfeits` is false; nothing was changed.
        """
        with self._database.transaction() as db:
            came = 0 if export is None else self._take_back(db, export)
            if not _rows(db):
                self._append_opening(db)
            ledger = self._own(db)
            lost = self._lost(db, ledger)
            if not lost and export is None and self._is_anchor_gone and ledger.head.row > 1:
                lost = [ledger.head]  # nobody knows how much later the last row was
            if lost and not forfeits:
                self._require_newest(db, ledger)
            forfeited = tuple(self._forfeit(db, ledger, head) for head in lost)
        self._note_anchor()
        return came, forfeited

    def _take_back(self, db: sqlite3.Connection, export: Export) -> int:
        exported, here = export.verify(self._identity.public), _rows(db)
        shared = min(len(here), len(exported.rows))
        if [row.sha256 for row in here[:shared]] != [row.sha256 for row in exported.rows[:shared]]:
            raise LedgerError(
                f"The export is not of the ledger in {self._database.path}: the two differ within their first {shared} rows."
            )
        for row in exported.rows[shared:]:
            db.execute("INSERT INTO ledger VALUES (?, ?)", (row.number, row.to_bytes()))
        db.executemany("INSERT OR IGNORE INTO signatures VALUES (?, ?)", export.signatures)
        return len(exported.rows) - shared

    def _lost(self, db: sqlite3.Connection, ledger: Ledger) -> list[Head]:
        """Heads this hospital signed or noted and does not have, the newest of each ledger."""
        anchor = None if self._anchor is None else read_anchor(self._anchor)
        noted = [] if anchor is None or ledger.knows(anchor) else [anchor]  # an anchor is of one ledger only
        shown = [head for head in claims(db, self._identity.public) if not self._is_known(ledger, head)]
        newest: dict[str, Head] = {}
        for head in [*noted, *shown]:
            if head.row > getattr(newest.get(head.ledger), "row", 0):
                newest[head.ledger] = head
        return list(newest.values())

    def _forfeit(self, db: sqlite3.Connection, ledger: Ledger, lost: Head) -> Forfeited:
        """Counts as spent all that the lost rows can have spent, as they kept to a budget: the rest of the largest known."""
        budget, known = self._site.budget, [account.reserved for account in ledger.plans.values()]
        limits = [math.inf if reserved.budget_epsilon is None else reserved.budget_epsilon for reserved in known]
        limit = max([budget.epsilon, *limits])
        epsilon = None if math.isinf(limit) else max(0.0, limit - ledger.epsilon)
        delta = max(0.0, max([budget.delta, *(reserved.budget_delta for reserved in known)]) - ledger.delta)
        entry = Forfeited(ledger=lost.ledger, row=lost.row, sha256=lost.sha256, epsilon=epsilon, delta=delta)
        self._append(db, ledger, entry, is_signed=True)
        return entry

    # --- the rows -------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, Ledger]]:
        """A transaction around a ledger that is this hospital's and not behind; a first use opens it."""
        self._open()
        with self._database.transaction() as db:
            ledger = self._own(db)
            self._require_newest(db, ledger)
            yield db, ledger

    def _open(self) -> None:
        """Writes row 1 and its anchor where nothing says that there ever was a ledger."""
        with self._database.transaction() as db:
            if not _count(db) and not self._lost(db, Ledger()):
                self._append_opening(db)
            is_new = _count(db) == 1
        if is_new and self._anchor is not None and read_anchor(self._anchor) is None:
            self._note_anchor()

    def _append_opening(self, db: sqlite3.Connection) -> None:
        opening = Opened(
            hospital=self._site.hospital,
            population=self._site.population,
            unit=self._site.unit,
            identity=self._identity.public.to_bytes().hex(),
            nonce=secrets.token_hex(16),
        )
        self._append(db, Ledger(), opening, is_signed=True)

    def _own(self, db: sqlite3.Connection) -> Ledger:
        rows = _rows(db)
        if not rows:
            raise LedgerError(
                f"There is no ledger in {self._database.path}, but this hospital signed one; find the newest copy of that "
                "file, or see fedslm ledger restore."
            )
        ledger = Ledger.replay(rows)
        opened, site = ledger.opened, self._site
        if opened.identity != self._identity.public.to_bytes().hex():
            raise LedgerError(
                f"The ledger {self._database.path} was opened with another key than the identity in site.yaml of "
                f"{site.hospital}; use that identity."
            )
        found, wanted = (opened.hospital, opened.population, opened.unit), (site.hospital, site.population, site.unit)
        if found != wanted:
            raise LedgerError(
                f"The ledger {self._database.path} is of {' / '.join(found)}, site.yaml says {' / '.join(wanted)} (hospital / "
                "population / privacy unit); correct site.yaml."
            )
        return ledger

    @property
    def _is_anchor_gone(self) -> bool:
        return self._anchor is not None and read_anchor(self._anchor) is None

    def _require_newest(self, db: sqlite3.Connection, ledger: Ledger) -> None:
        if self._is_anchor_gone and ledger.head.row > 1:
            raise RollbackError(
                f"The anchor {self._anchor} is gone though the ledger has {ledger.head.row} rows; bring it back, or run "
                "fedslm ledger restore --from EXPORT with the newest export, or --forfeit where there is none."
            )
        for head in self._lost(db, ledger):
            raise RollbackError(
                f"The ledger {self._database.path} ends at row {ledger.head.row}, and this hospital signed or noted row "
                f"{head.row} of ledger {head.ledger[:12]}, which is not in it: an older copy was restored. Bring "
                "back the newest copy, or run fedslm ledger restore --from EXPORT, or --forfeit where there is none."
            )

    def _is_known(self, ledger: Ledger, head: Head) -> bool:
        """Whether this ledger or that of another population here contains a row."""
        is_own = bool(ledger.rows) and head.ledger == ledger.id
        return ledger.knows(head) or (not is_own and any(_contains(path, head) for path in self._database.others))

    def _reserve(self, db: sqlite3.Connection, ledger: Ledger, plan: Plan, coordinator: str) -> None:
        self._require_budget(ledger)
        account = ledger.plans.get(plan.sha256)
        if account is None:
            budget = self._site.budget
            entry = planned_reservation(
                plan,
                self._site.hospital,
                coordinator=coordinator,
                budget_epsilon=None if math.isinf(budget.epsilon) else budget.epsilon,
                budget_delta=budget.delta,
            )
            self._append(db, ledger, entry, is_signed=True)
        elif not account.is_open:
            raise BudgetExceededError(
                f"The plan {plan.run_id} was closed in the ledger of {self._site.hospital}; agree on a new plan."
            )

    def _require_budget(self, ledger: Ledger) -> None:
        """A budget that was lowered counts from now on, for the plans that are under way as well."""
        budget = self._site.budget
        if ledger.epsilon > budget.epsilon or ledger.delta > budget.delta:
            raise BudgetExceededError(
                f"site.yaml of {self._site.hospital} allows epsilon {budget.epsilon:g} and delta {budget.delta:g}, and the "
                f"ledger has spent or reserved {ledger.epsilon:g} and {ledger.delta:g}; close plans that are over, or raise "
                "the budget."
            )

    def _append(self, db: sqlite3.Connection, ledger: Ledger, entry: Entry, *, is_signed: bool = False) -> Head:
        row = ledger.check(entry, f"{self._now():%Y-%m-%dT%H:%M:%SZ}")
        ledger.add(row)
        db.execute("INSERT INTO ledger VALUES (?, ?)", (row.number, row.to_bytes()))
        if is_signed:
            self._sign(db, ledger.head)
        return ledger.head

    def _sign(self, db: sqlite3.Connection, head: Head) -> None:
        signature = sign_head(self._identity, head, hospital=self._site.hospital)
        db.execute("INSERT INTO signatures VALUES (?, ?)", (head.row, signature))

    def _note_anchor(self) -> Head:
        """Notes the newest row; within a transaction, so that of two processes the later row is noted last."""
        with self._database.transaction() as db:
            head = _newest(db)
            if self._anchor is not None:
                write_anchor(self._anchor, head)
        return head


@contextmanager
def open_ledger(site: Site) -> Iterator[LedgerBook]:
    """Opens the ledger of a site's population, with the site's keys.

    Raises:
      ConfigError: see `own_identity`. RunError: the state folder cannot be used.
    """
    with open_database(site) as database:
        yield LedgerBook(database, site=site, identity=own_identity(site))


def _count(db: sqlite3.Connection) -> int:
    (count,) = db.execute("SELECT COUNT(*) FROM ledger").fetchone()
    return int(count)


def _rows(db: sqlite3.Connection) -> list[Row]:
    return [_row(number, data) for number, data in db.execute("SELECT number, data FROM ledger ORDER BY number")]


def _row(number: int, data: bytes) -> Row:
    row = Row.from_bytes(data)
    if row.number != number:
        raise LedgerError(f"The ledger has row {row.number} in the place of row {number}; the file was edited.")
    return row


def _newest(db: sqlite3.Connection) -> Head:
    """The head without a look at what lies between the first row and the last."""
    query = (
        "SELECT data FROM ledger WHERE number IN (SELECT MIN(number) FROM ledger UNION SELECT MAX(number) FROM ledger)"
    )
    rows = [Row.from_bytes(data) for (data,) in db.execute(f"{query} ORDER BY number")]
    return Head(ledger=rows[0].sha256, row=rows[-1].number, sha256=rows[-1].sha256)


def _signature(db: sqlite3.Connection, number: int) -> bytes | None:
    row = db.execute("SELECT signature FROM signatures WHERE number = ?", (number,)).fetchone()
    return None if row is None else bytes(row[0])


def _find(ledger: Ledger, plan: str) -> Account:
    found = [account for sha256, account in ledger.plans.items() if sha256.startswith(plan)]
    if len(plan) < LEAST_DIGITS or len(found) != 1 or not found[0].is_open:
        open_plans = ", ".join(sha256[:12] for sha256, account in ledger.plans.items() if account.is_open)
        raise LedgerError(
            f"'{plan}' is not the start, {LEAST_DIGITS} digits or more, of one open plan's hash; open are "
            f"{open_plans or 'none'} (see fedslm ledger show)."
        )
    return found[0]


def _repriced(account: Account) -> float | None:
    """What the sessions that were started cost: a plan's sessions are one mechanism, repeated."""
    if not account.sessions:
        return 0.0
    if account.reserved.epsilon is None:
        return None
    from fedslm.privacy.accounting import epsilon_spent  # a second of import time that a booking does not need

    spent = epsilon_spent(account.reserved.mechanism(), sessions=len(account.sessions), delta=account.reserved.delta)
    return min(spent, account.reserved.epsilon)


def _contains(path: Path, head: Head) -> bool:
    """Whether another population's file holds a row."""
    try:
        with reading_only(path) as db:
            ledger = Ledger.replay(_rows(db))
    except (sqlite3.Error, LedgerError):
        return False
    return ledger.opened.population == path.stem and ledger.knows(head)  # a copy under another name counts for nothing
