"""The fold: rows that are only added, and what is reserved, booked and spent by them.

Whoever adds a row and whoever verifies a ledger years later run the same rules. A plan is charged in full when it is
approved; once closed it is charged for the sessions that it started. Between plans epsilons and deltas add: basic
composition, which stays valid when a plan depends on what earlier ones gave out. Knows no files and no accountant; its
public names are those of `ledger`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedslm.errors import BudgetExceededError, LedgerError
from fedslm.governance.receipt import MAX_ROW, Head
from fedslm.privacy.ledger_rows import NO_ROW, Booked, Closed, Entry, Forfeited, Opened, Reserved, Row

_UNIT = 2**1074  # charges are counted in 2^-1074, of which every float is a whole number


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One plan in the ledger.

    Attributes:
      reserved: the row that approved it.
      sessions: numbers of the sessions booked, ascending.
      closed: None as long as sessions may be booked.
    """

    reserved: Reserved
    sessions: tuple[int, ...]
    closed: Closed | None

    @property
    def is_open(self) -> bool:
        """Whether sessions may still be booked."""
        return self.closed is None

    @property
    def sessions_left(self) -> int:
        """Sessions that may still be booked."""
        return max(0, self.reserved.max_sessions - len(self.sessions)) if self.is_open else 0

    @property
    def epsilon(self) -> float:
        """What the plan is charged: all that was reserved, or once closed what it came to; math.inf if unbounded."""
        return _bound(self.reserved.epsilon if self.closed is None else self.closed.epsilon)

    @property
    def delta(self) -> float:
        """What the plan is charged; 0 where no session started, or where epsilon is unbounded and delta says nothing."""
        unused = self.closed is not None and self.closed.sessions == 0
        return 0.0 if unused or self.epsilon == math.inf else self.reserved.delta


@dataclass(frozen=True, slots=True)
class _Charge:
    """A sum of charges, exact: what closing a plan takes away is to the last bit what reserving it had added."""

    epsilon_units: int = 0
    delta_units: int = 0
    unbounded: int = 0

    @classmethod
    def of(cls, epsilon: float | None, delta: float) -> _Charge:
        """One charge. Where epsilon is unbounded, delta says nothing and is not counted."""
        if epsilon is None or epsilon == math.inf:
            return cls(unbounded=1)
        return cls(_units(epsilon), _units(delta))

    def plus(self, other: _Charge) -> _Charge:
        return _Charge(
            self.epsilon_units + other.epsilon_units,
            self.delta_units + other.delta_units,
            self.unbounded + other.unbounded,
        )

    def minus(self, other: _Charge) -> _Charge:
        return self.plus(_Charge(-other.epsilon_units, -other.delta_units, -other.unbounded))

    @property
    def epsilon(self) -> float:
        return math.inf if self.unbounded else _from_units(self.epsilon_units)

    @property
    def delta(self) -> float:
        return _from_units(self.delta_units)


class Ledger:
    """The rows of one population's ledger and what follows from them. Begins empty; its first row is `Opened`.

    Guarantees:
      A plan is reserved only while all that is reserved and spent stays within the budget named with it.
      A session is booked once, for a plan that is reserved and open, and never beyond what was reserved.
      What is charged falls only by closing a plan. Sums are exact, and rounded once to the nearest float.
    """

    def __init__(self) -> None:
        self._opened: Opened | None = None
        self._last, self._tip = 0, NO_ROW  # number and hash of the last row
        self._rows: dict[int, Row] = {}
        self._hashes: dict[int, str] = {}
        self._reserved: dict[str, Reserved] = {}
        self._sessions: dict[str, list[int]] = {}
        self._closed: dict[str, Closed] = {}
        self._forfeits: dict[str, int] = {}  # ledger -> the last row of it that is settled
        self._held, self._spent = _Charge(), _Charge()
        self._turned: list[int] = []

    @classmethod
    def replay(cls, rows: Iterable[Row]) -> Ledger:
        """Folds rows from the first on.

        Raises:
          LedgerError: a row was altered, taken out, put in or moved, or breaks a rule; a budget's rule, too.
        """
        ledger = cls()
        for row in rows:
            try:
                ledger.add(row)
            except (LedgerError, BudgetExceededError) as error:
                raise LedgerError(f"The ledger is refused at row {row.number}: {error}") from None
        return ledger

    def check(self, entry: Entry, time: str) -> Row:
        """The row that would come next, if the rules allow it. Nothing is changed: write it down, then `add` it.

        Args:
          time: of the hospital's clock, UTC, "2026-11-22T23:11:18Z". It may be before the last row's.
        Raises:
          LedgerError: the entry breaks a rule. BudgetExceededError: the budget, or what was reserved, does not cover it.
        """
        row = Row(number=self._next_number(entry), time=time, previous=self._tip, entry=entry)
        self._refuse(entry)
        return row

    def add(self, row: Row) -> None:
        """Takes the next row.

        Raises:
          LedgerError, BudgetExceededError: it does not go on from the last row, or as `check`. Nothing is changed then.
        """
        number = self._next_number(row.entry)
        if row.number != number:
            raise LedgerError(
                f"A row numbered {row.number} stands where row {number} belongs; rows were taken out, put in or moved."
            )
        if row.previous != self._tip:
            raise LedgerError("The row does not hold the hash of the row before it; one of the two was altered.")
        self._refuse(row.entry)
        self._apply(row)

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows in their order."""
        return tuple(self._rows.values())

    @property
    def opened(self) -> Opened:
        """The first row's entry: whose ledger this is.

        Raises:
          LedgerError: the ledger is empty.
        """
        if self._opened is None:
            raise LedgerError("The ledger is empty; its first row says whose it is.")
        return self._opened

    @property
    def id(self) -> str:
        """Hash of the first row, 64 hex digits.

        Raises:
          LedgerError: the ledger is empty.
        """
        return self.head_of(1).ledger

    @property
    def head(self) -> Head:
        """The last row, which stands for all before it; the hospital signs this.

        Raises:
          LedgerError: the ledger is empty.
        """
        return self.head_of(self._last)

    def head_of(self, number: int) -> Head:
        """The head as it was when this row was the last.

        Raises:
          LedgerError: there is no such row.
        """
        if number not in self._hashes:
            raise LedgerError(
                f"The ledger has no row {number}; it ends before, rows were taken out, or it is another's."
            )
        return Head(ledger=self._hashes[1], row=number, sha256=self._hashes[number])

    def find(self, head: Head) -> Row | None:
        """The row that a head names; None where this ledger has none with that number and hash."""
        is_here = head.row in self._rows and (head.ledger, head.sha256) == (self.id, self._hashes[head.row])
        return self._rows[head.row] if is_here else None

    def knows(self, head: Head) -> bool:
        """Whether nothing that the head stands for is missing: the row is here, or it was forfeited as lost."""
        return self.find(head) is not None or head.row <= self._forfeits.get(head.ledger, 0)

    @property
    def plans(self) -> Mapping[str, Account]:
        """Every plan that was reserved, in that order."""
        return MappingProxyType({plan: self._account(plan) for plan in self._reserved})

    @property
    def epsilon(self) -> float:
        """Epsilon of all plans, open and closed, and of all that was forfeited; math.inf if one of them is unbounded."""
        return self._held.plus(self._spent).epsilon

    @property
    def delta(self) -> float:
        """Delta of all plans, open and closed, and of all that was forfeited."""
        return self._held.plus(self._spent).delta

    @property
    def clock_went_back(self) -> tuple[int, ...]:
        """Numbers of the rows whose time is before that of the row before them. No fault, but it shows in a report."""
        return tuple(self._turned)

    def _account(self, plan: str) -> Account:
        sessions = tuple(self._sessions[plan])
        return Account(reserved=self._reserved[plan], sessions=sessions, closed=self._closed.get(plan))

    def _next_number(self, entry: Entry) -> int:
        last = self._last
        if isinstance(entry, Forfeited) and self._rows and entry.ledger == self.id:
            last = max(last, entry.row)  # others remember heads up to there: this one has to be ahead of them
        if last >= MAX_ROW:
            raise LedgerError(f"The ledger has a row {last}, the last there can be; nothing can be added to it.")
        return last + 1

    def _refuse(self, entry: Entry) -> None:
        """Raises where an entry breaks a rule."""
        if isinstance(entry, Opened) != (not self._rows):
            raise LedgerError("A ledger has one opening row, its first; this one is another, or is missing there.")
        match entry:
            case Reserved():
                self._refuse_reservation(entry)
            case Booked():
                self._refuse_booking(entry)
            case Closed():
                self._refuse_closing(entry)

    def _refuse_reservation(self, entry: Reserved) -> None:
        if entry.plan in self._reserved:
            raise LedgerError(f"Plan {entry.plan[:12]} is reserved already; a plan is approved once.")
        if entry.event != "none" and entry.unit != self.opened.unit:
            raise LedgerError(
                f"Plan {entry.plan[:12]} protects a {entry.unit}, but this ledger counts by the {self.opened.unit}; "
                "approve plans with that unit only."
            )
        total = self._held.plus(self._spent).plus(_Charge.of(entry.epsilon, entry.delta))
        if entry.budget_epsilon is not None and total.epsilon > entry.budget_epsilon:
            spent, held = self._spent.epsilon, self._held.epsilon
            raise _over_budget("epsilon", entry.budget_epsilon, spent, held, _bound(entry.epsilon))
        if total.delta > entry.budget_delta:
            raise _over_budget("delta", entry.budget_delta, self._spent.delta, self._held.delta, entry.delta)

    def _refuse_booking(self, entry: Booked) -> None:
        booked, reserved = self._booked_of(entry.plan), self._reserved[entry.plan]
        limit = reserved.max_sessions
        if booked and entry.session <= booked[-1]:
            raise LedgerError(
                f"Session {entry.session} of plan {entry.plan[:12]} is not new: session {booked[-1]} is booked; "
                "a session is booked once and never after a later one."
            )
        if len(booked) >= limit and reserved.event != "none":  # unbounded is unbounded, however many there are
            raise BudgetExceededError(
                f"Plan {entry.plan[:12]} has {len(booked)} sessions booked of the {limit} that were reserved; "
                "nothing is left of it, so plan and approve another."
            )

    def _refuse_closing(self, entry: Closed) -> None:
        booked, reserved = self._booked_of(entry.plan), self._reserved[entry.plan]
        if entry.sessions != len(booked):
            raise LedgerError(
                f"Plan {entry.plan[:12]} is closed with {entry.sessions} sessions, but {len(booked)} are booked; "
                "it is charged for what is booked."
            )
        epsilon, limit = _bound(entry.epsilon), _bound(reserved.epsilon)
        if epsilon > limit or (booked and limit == math.inf > epsilon):
            raise LedgerError(
                f"Plan {entry.plan[:12]} is closed at epsilon {epsilon}, but {limit} was reserved; it may come to less, "
                "except that training without privacy stays unbounded."
            )

    def _booked_of(self, plan: str) -> list[int]:
        """Sessions booked of a plan that is reserved and open."""
        if plan not in self._reserved:
            raise LedgerError(f"Plan {plan[:12]} is not reserved in this ledger; approve it first.")
        if plan in self._closed:
            raise LedgerError(f"Plan {plan[:12]} is closed; nothing more is booked or closed of it.")
        return self._sessions[plan]

    def _apply(self, row: Row) -> None:
        """Takes in a row that no rule refuses; nothing here can fail halfway."""
        digest = row.sha256
        match row.entry:
            case Opened():
                self._opened = row.entry
            case Reserved():
                self._reserved[row.entry.plan], self._sessions[row.entry.plan] = row.entry, []
                self._held = self._held.plus(_Charge.of(row.entry.epsilon, row.entry.delta))
            case Booked():
                self._sessions[row.entry.plan].append(row.entry.session)
            case Closed():
                self._close(row.entry)
            case Forfeited():
                lost = self._forfeits.get(row.entry.ledger, 0)
                self._forfeits[row.entry.ledger] = max(lost, row.entry.row)
                self._spent = self._spent.plus(_Charge.of(row.entry.epsilon, row.entry.delta))
        if self._rows and row.time < self._rows[self._last].time:
            self._turned.append(row.number)
        self._rows[row.number], self._hashes[row.number] = row, digest
        self._last, self._tip = row.number, digest

    def _close(self, entry: Closed) -> None:
        before = self._account(entry.plan)
        self._closed[entry.plan] = entry
        after = self._account(entry.plan)
        self._held = self._held.minus(_Charge.of(before.epsilon, before.delta))
        self._spent = self._spent.plus(_Charge.of(after.epsilon, after.delta))


def _bound(epsilon: float | None) -> float:
    return math.inf if epsilon is None else epsilon


def _units(value: float) -> int:
    numerator, denominator = value.as_integer_ratio()  # the denominator divides _UNIT
    return numerator * (_UNIT // denominator)


def _from_units(units: int) -> float:
    try:
        return units / _UNIT  # of integers: the nearest float
    except OverflowError:
        return math.inf


def _over_budget(name: str, budget: float, spent: float, held: float, asked: float) -> BudgetExceededError:
    return BudgetExceededError(
        f"The privacy budget of this population is {name} {budget:g}, of which {spent:g} is spent and {held:g} reserved by "
        f"open plans; a plan that asks for {asked:g} does not fit, so close plans that are over, or refuse this one."
    )
