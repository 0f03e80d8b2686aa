"""The ledger of one population's privacy: as its hospital keeps it, and as others verify it from a file.

Rows and entries are those of `ledger_rows`, the rules those of `ledger_fold`; here is what an audit needs: the export with
its signatures, receipts, and epsilons computed again. Files are the business of `clients/ledger.py`. The server never
imports this, and this imports the accountant only to recompute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from fedslm.crypto.identity import PublicIdentity
from fedslm.encoding import canonical_bytes
from fedslm.errors import LedgerError
from fedslm.governance.receipt import Receipt, verify_head
from fedslm.privacy.ledger_fold import Account, Ledger
from fedslm.privacy.ledger_rows import (
    EVENTS,
    NO_ROW,
    Booked,
    Closed,
    Data,
    Entry,
    Forfeited,
    Opened,
    Reserved,
    Row,
    parse,
)
from fedslm.privacy.mechanism import Mechanism

__all__ = [
    "EVENTS",
    "EXPORT_VERSION",
    "NO_ROW",
    "Account",
    "Booked",
    "Closed",
    "Data",
    "Entry",
    "Export",
    "Forfeited",
    "Ledger",
    "Opened",
    "Recomputed",
    "Reserved",
    "Row",
    "check_receipts",
    "recompute",
]

EXPORT_VERSION = 1

RECOMPUTE_MARGIN = 1e-6
"""By how much a recomputed epsilon may exceed the one on record: two machines may round differently."""


_Prices = dict[tuple[Mechanism, int, float], tuple[float, float]]  # (mechanism, sessions, delta) -> by PLD, by RDP


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A ledger as a file that others can verify: its rows, and the hospital's signatures on heads.

    Attributes:
      signatures: (number of the row, signature on the head it was), ascending.

    Raises:
      LedgerError: a row is signed twice, or signatures are out of order.
    """

    rows: tuple[Row, ...]
    signatures: tuple[tuple[int, bytes], ...]

    def __post_init__(self) -> None:
        numbers = [number for number, _ in self.signatures]
        if any(after <= before for before, after in pairwise(numbers)):
            raise LedgerError(
                "The ledger's signatures are not in ascending order of rows, each row once; export it again."
            )

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        rows = [row.to_values() for row in self.rows]
        signatures = [[number, signature.hex()] for number, signature in self.signatures]
        return canonical_bytes({"version": EXPORT_VERSION, "rows": rows, "signatures": signatures})

    @classmethod
    def from_bytes(cls, data: bytes) -> Export:
        """Reads what `to_bytes` wrote, strictly. `verify` checks what it says.

        Raises:
          LedgerError: damaged, not canonical, of another version or made by a newer release.
        """
        values = parse(data, "exported ledger")
        version = values.get("version")
        if version != EXPORT_VERSION:
            raise LedgerError(f"The exported ledger has version {version!r}; this release reads {EXPORT_VERSION}.")
        export = cls(rows=_rows(values.get("rows")), signatures=_signatures(values.get("signatures")))
        if export.to_bytes() != data:
            raise LedgerError(
                "The exported ledger is not in canonical form; it was edited or written by something else."
            )
        return export

    def verify(self, key: PublicIdentity | None) -> Ledger:
        """Checks the rows, the rules and the signatures.

        Args:
          key: the hospital's public keys, as the roster or the hospital itself gives them. None takes those that the
            ledger names: that finds damage and edits, not a ledger that somebody else made up.

        Returns:
          The ledger. That no rows at its end are missing, only receipts and heads kept elsewhere can say.

        Guarantees: any single altered bit of the exported bytes is refused, here or in `from_bytes`.

        Raises:
          LedgerError: as `Ledger.replay`, the ledger is empty or of another key, or the head of a booked session or of
            the last row is not signed. SignatureError: a signature is not the hospital's on that row.
        """
        ledger = Ledger.replay(self.rows)
        opened = ledger.opened
        if key is not None and key != opened.key:
            raise LedgerError(
                f"The ledger says it is of the key {opened.key.fingerprint}, expected is {key.fingerprint}; ask "
                f"'{opened.hospital}' which is its own."
            )
        self._require_signed(ledger)
        for number, signature in self.signatures:
            verify_head(opened.key, ledger.head_of(number), signature, hospital=opened.hospital)
        return ledger

    def _require_signed(self, ledger: Ledger) -> None:
        signed = {number for number, _ in self.signatures}
        needed = [row.number for row in self.rows if isinstance(row.entry, Booked)] + [ledger.head.row]
        for number in needed:
            if number not in signed:
                raise LedgerError(
                    f"Row {number} has to be signed and is not; the export is incomplete, so export it again."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What the accountants find for one plan.

    Attributes:
      plan: its hash.
      sessions: how many it is charged for: those booked once it is closed, all that were reserved before.
      epsilon: what the ledger charges; math.inf if unbounded, as then are the other two.
      pld: epsilon by privacy loss distributions, which decides.
      rdp: epsilon by Renyi DP, an upper bound found independently.
    """

    plan: str
    sessions: int
    epsilon: float
    pld: float
    rdp: float


def check_receipts(ledger: Ledger, receipts: Iterable[Receipt]) -> tuple[Receipt, ...]:
    """Checks the receipts that this hospital gave out for this ledger; others are skipped.

    Returns:
      Those that were checked.

    Raises:
      LedgerError: a receipt names a row that the ledger lacks, or another session than that row.
      SignatureError: a receipt is not the hospital's.
    """
    hospital, key = ledger.opened.hospital, ledger.opened.key
    own = tuple(each for each in receipts if (each.hospital, each.head.ledger) == (hospital, ledger.id))
    for receipt in own:
        receipt.verify(key)
        row = ledger.find(receipt.head)
        what = f"The receipt of '{hospital}' for session {receipt.session} of plan {receipt.run[:12]}"
        if row is None and not ledger.knows(receipt.head):
            raise LedgerError(
                f"{what} names row {receipt.head.row}, which is not in this ledger; "
                "rows were taken out or altered, or an older copy was put back."
            )
        if row is not None and row.entry != Booked(plan=receipt.run, session=receipt.session):
            raise LedgerError(f"{what} names row {receipt.head.row}, which books something else; ask the hospital.")
    return own


def recompute(ledger: Ledger) -> tuple[Recomputed, ...]:
    """Prices every plan again, in the order of reservation.

    Returns:
      One for each plan. A second of CPU time for each kind of plan, or more.

    Raises:
      LedgerError: the ledger charges less than the accountant finds. PrivacyError: two accountants contradict each other.
    """
    prices: _Prices = {}
    return tuple(_recomputed(account, prices) for account in ledger.plans.values())


def _recomputed(account: Account, prices: _Prices) -> Recomputed:
    """Checks what was set aside and, once closed, what it came to; the last of the two is what the plan is charged."""
    reserved, closed = account.reserved, account.closed
    claims = [(reserved.max_sessions, reserved.epsilon)] + ([(closed.sessions, closed.epsilon)] if closed else [])
    for sessions, epsilon in claims:
        pld, rdp = _price(reserved, sessions, prices)
        if pld > (math.inf if epsilon is None else epsilon) + RECOMPUTE_MARGIN:
            raise LedgerError(
                f"The ledger charges plan {reserved.plan[:12]} epsilon {epsilon} for {sessions} sessions, but they cost "
                f"{pld:.6f}; its promise does not hold, so ask the hospital."
            )
    return Recomputed(plan=reserved.plan, sessions=sessions, epsilon=account.epsilon, pld=pld, rdp=rdp)


def _price(reserved: Reserved, sessions: int, prices: _Prices) -> tuple[float, float]:
    """Epsilon by both accountants, remembered for the next plan of the same kind."""
    from fedslm.privacy.accounting import epsilon_spent, renyi_epsilon  # lazy: only an audit prices again

    if reserved.event == "none":
        return (math.inf, math.inf) if sessions else (0.0, 0.0)
    kind = reserved.mechanism(), sessions, reserved.delta
    if kind not in prices:
        prices[kind] = (
            epsilon_spent(kind[0], sessions=sessions, delta=reserved.delta),
            renyi_epsilon(kind[0], sessions=sessions, delta=reserved.delta),
        )
    return prices[kind]


def _rows(values: object) -> tuple[Row, ...]:
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise LedgerError("The exported ledger has no list of rows; it was damaged or is of another kind.")
    return tuple(Row.from_values(row) for row in values)


def _signatures(values: object) -> tuple[tuple[int, bytes], ...]:
    try:
        return tuple(_signature(*pair) for pair in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise LedgerError("The exported ledger has no list of signatures with their rows; it was damaged.") from None


def _signature(number: object, text: object) -> tuple[int, bytes]:
    if type(number) is not int or not isinstance(text, str):  # True is an int, too
        raise TypeError
    return number, bytes.fromhex(text)
