"""Checks ledgers that hospitals exported, with nothing but the files and public keys: no database, no network, no trust."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedslm.errors import ConfigError, FedSLMError, LedgerError
from fedslm.governance.keyfiles import KeyFile
from fedslm.governance.receipt import Receipt
from fedslm.governance.roster import Roster
from fedslm.privacy.ledger import Export, Ledger, Opened, Recomputed, check_receipts, recompute
from fedslm.privacy.mechanism import Mechanism

PRV_MARGIN = 0.05
"""By how much the Fourier accountant may exceed what a ledger charges: it rounds up by about 0.01, the ledger by less."""

DEFAULT_TIMEOUT_S = 60.0

_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose keys an auditor already has. Without any, a ledger's own word is taken for it, and that is said.

    Attributes:
      keys: public files, with the names in their first lines.
      roster: the consortium's, which says whose key is whose.
    """

    keys: tuple[KeyFile, ...] = ()
    roster: Roster | None = None

    @property
    def source(self) -> str:
        """Where a ledger's identity comes from: "roster", "key", or "file", which is no proof of anything."""
        return "roster" if self.roster is not None else "key" if self.keys else "file"

    def require(self, opened: Opened) -> None:
        """Refuses a ledger that is not of a key that is trusted for its hospital.

        Raises:
          LedgerError: no such key was given, or another one for that name. RosterError: the roster does not name the
            hospital, or its key is revoked.
        """
        if self.roster is not None and self.roster.key_of(opened.hospital) != opened.key:
            raise LedgerError(
                f"The ledger says it is of '{opened.hospital}', but is signed with another key than the roster has for them: "
                f"{opened.key.fingerprint}."
            )
        if self.keys:
            self._require_key(opened)

    def _require_key(self, opened: Opened) -> None:
        found = [file for file in self.keys if file.public == opened.key]
        if not found:
            raise LedgerError(
                f"The ledger of '{opened.hospital}' is of the key {opened.key.fingerprint}, which is not one that was given "
                f"({'; '.join(file.public.fingerprint for file in self.keys)}); ask '{opened.hospital}' which is its own."
            )
        labels = {file.label for file in found} - {""}
        if labels and opened.hospital not in labels:
            raise LedgerError(
                f"The ledger says it is of '{opened.hospital}', but its key was handed out as that of "
                f"'{', '.join(sorted(labels))}'; ask both."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One plan, priced again.

    Attributes:
      found: what the accountants that decide and check find.
      prv: epsilon by the Fourier accountant; None where it gave up, or where there is nothing to compute.
    """

    found: Recomputed
    prv: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A ledger in which everything holds.

    Attributes:
      path: the exported file.
      signatures: how many there are, all of them right.
      identity: where the key comes from that it was checked with, see `Trust.source`.
      receipts: how many receipts were checked against it.
      prices: one for each plan, in the order of reservation.
    """

    path: Path
    signatures: int
    ledger: Ledger
    identity: str
    receipts: int
    prices: tuple[Priced, ...]

    @property
    def opened(self) -> Opened:
        """Whose ledger it is."""
        return self.ledger.opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Ledgers that all hold.

    Attributes:
      ledgers: in the order they were given; of two exports of one ledger the longer.
      has_receipts: whether any were given.
      roster_sha256: the roster that names the keys; None without one.
      seconds: what took how long: `chain` (files, hashes, signatures, receipts), `accountants`, `prv`.
    """

    ledgers: tuple[Checked, ...]
    has_receipts: bool
    roster_sha256: str | None
    seconds: dict[str, float]


def verify_ledgers(
    paths: Sequence[Path], *, trust: Trust, receipts: Sequence[Receipt] | None, timeout_s: float
) -> Verified:
    """Checks everything there is to check, cheapest first.

    Args:
      paths: files written by `fedslm ledger export`.
      receipts: what a coordinator collected; None where there are none.
      timeout_s: for the Fourier accountant, all plans together; the others take what they take.

    Raises:
      ConfigError: a file that cannot be read or is something else.
      LedgerError: the first thing that does not hold, with the file it is in.
    """
    began = time.perf_counter()
    opened = _longest([_open(path, trust) for path in paths])
    counts = _count_receipts(opened, receipts or ())
    chained = time.perf_counter()
    found = [_recompute(each) for each in opened]
    priced = time.perf_counter()
    prv = _Fourier(deadline=priced + timeout_s)
    ledgers = tuple(
        Checked(
            path=each.path,
            signatures=each.signatures,
            ledger=each.ledger,
            identity=trust.source,
            receipts=count,
            prices=tuple(prv.price(each, plan) for plan in plans),
        )
        for each, count, plans in zip(opened, counts, found, strict=True)
    )
    seconds = {"chain": chained - began, "accountants": priced - chained, "prv": time.perf_counter() - priced}
    roster = None if trust.roster is None else trust.roster.sha256
    return Verified(ledgers=ledgers, has_receipts=receipts is not None, roster_sha256=roster, seconds=seconds)


def read_receipts(paths: Sequence[Path]) -> tuple[Receipt, ...]:
    """Reads what a coordinator collected: one receipt a line.

    Raises:
      ConfigError: a file cannot be read. LedgerError: a line is no receipt, by file and line.
    """
    found = []
    for path in paths:
        for number, line in enumerate(read_file(path).splitlines(), start=1):
            with _within(f"{path}, line {number}"):
                found.append(Receipt.from_bytes(line))
    return tuple(found)


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A ledger whose rows and signatures hold."""

    path: Path
    signatures: int
    ledger: Ledger


def _open(path: Path, trust: Trust) -> _Open:
    data = read_file(path)
    if data.startswith(_SQLITE):
        raise ConfigError(
            f"{path} is the database that a hospital works with, not an export of its ledger; write one there with: "
            "fedslm ledger export --out FILE"
        )
    with _within(path):
        export = Export.from_bytes(data)
        ledger = export.verify(None)
        trust.require(ledger.opened)
    return _Open(path=path, signatures=len(export.signatures), ledger=ledger)


def _longest(opened: Sequence[_Open]) -> list[_Open]:
    """One of each ledger: of exports made at different times the longest, which has to contain the others."""
    kept: dict[str, _Open] = {}
    for each in opened:
        other = kept.get(each.ledger.id, each)
        long, short = (each, other) if each.ledger.head.row > other.ledger.head.row else (other, each)
        if not long.ledger.knows(short.ledger.head):
            raise LedgerError(
                f"{long.path} and {short.path} are two histories of one ledger of '{long.ledger.opened.hospital}': row "
                f"{short.ledger.head.row} is not the same in both, though the hospital signed both."
            )
        kept[each.ledger.id] = long
    return list(kept.values())


def _count_receipts(opened: Sequence[_Open], receipts: Sequence[Receipt]) -> list[int]:
    """Checks receipts against the ledgers, and that none names a further ledger of the same hospitals."""
    counts = []
    for each in opened:
        with _within(each.path):
            counts.append(len(check_receipts(each.ledger, receipts)))
    for receipt in receipts:
        _require_whole(receipt, [each.ledger for each in opened if each.ledger.opened.hospital == receipt.hospital])
    return counts


def _require_whole(receipt: Receipt, ledgers: Sequence[Ledger]) -> None:
    """A hospital that shows one ledger and keeps quiet about another would look as if it had spent less."""
    if not ledgers or any(ledger.id == receipt.head.ledger or ledger.knows(receipt.head) for ledger in ledgers):
        return
    receipt.verify(ledgers[0].opened.key)
    raise LedgerError(
        f"'{receipt.hospital}' gave a receipt for session {receipt.session} of plan {receipt.run[:12]} out of another ledger, "
        f"{receipt.head.ledger[:12]}, which is not among the files; ask '{receipt.hospital}' for its export."
    )


def _recompute(each: _Open) -> tuple[Recomputed, ...]:
    with _within(each.path):
        return recompute(each.ledger)


class _Fourier:
    """The third accountant, which may take for ever, under one deadline for all plans."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._known: dict[tuple[Mechanism, int, float], float | None] = {}

    def price(self, each: _Open, found: Recomputed) -> Priced:
        """Adds its finding to those of the others.

        Raises:
          LedgerError: it finds more than the ledger charges.
        """
        reserved = each.ledger.plans[found.plan].reserved
        if found.sessions == 0 or reserved.event == "none":
            return Priced(found=found, prv=None if found.sessions else 0.0)
        kind = reserved.mechanism(), found.sessions, reserved.delta
        if kind not in self._known:
            self._known[kind] = self._compute(*kind)
        prv = self._known[kind]
        if prv is not None and prv > found.epsilon + PRV_MARGIN:
            raise LedgerError(
                f"{each.path}: The ledger charges plan {found.plan[:12]} epsilon {found.epsilon:.4f} for {found.sessions} "
                f"sessions, but the Fourier accountant finds {prv:.4f}; ask the hospital, and report this."
            )
        return Priced(found=found, prv=prv)

    def _compute(self, mechanism: Mechanism, sessions: int, delta: float) -> float | None:
        from fedslm.privacy.accounting import prv_epsilon  # lazy: a second of import time

        left = self._deadline - time.perf_counter()
        return prv_epsilon(mechanism, sessions=sessions, delta=delta, timeout_s=left) if left > 0 else None


@contextmanager
def _within(where: Path | str) -> Iterator[None]:
    """Says in which file something does not hold. Whatever kind of error it was: an audit that fails ends with 1."""
    try:
        yield
    except FedSLMError as error:
        raise LedgerError(f"{where}: {error}") from error
