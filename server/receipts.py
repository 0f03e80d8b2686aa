"""Receipts: the hospitals' signed word that a session is booked in their ledgers, kept for whoever audits those.

A hospital that takes a booking back later has signed the opposite. Without a receipt nobody's shares are passed on.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from fedslm.crypto.identity import PublicIdentity
from fedslm.errors import LedgerError, RunError, SignatureError
from fedslm.files import sync
from fedslm.governance.receipt import Head, Receipt
from fedslm.secagg.messages import Advert


def check_receipt(data: bytes, *, advert: Advert, run: str, session: int, key: PublicIdentity) -> Receipt:
    """Reads the receipt that came with a hospital's shares.

    Args:
      advert: with which the hospital is in the session.
      run: SHA-256 of the plan, 64 hex digits.
      key: the hospital's.
    Raises:
      LedgerError: it is missing or damaged, not signed by the hospital, of another session, or its row does not come after
        the one in the advert.
    """
    receipt = Receipt.from_bytes(data)
    with_what = receipt.hospital, receipt.run, receipt.session
    if with_what != (advert.member, run, session):
        raise LedgerError(f"{advert.member} sent a receipt of another hospital, run or session than {session}.")
    try:
        receipt.verify(key)
    except SignatureError:
        raise LedgerError(f"The receipt of {advert.member} for session {session} is not signed by it.") from None
    before = Head.from_bytes(advert.ledger_head)
    if receipt.head.ledger != before.ledger or receipt.head.row <= before.row:
        raise LedgerError(
            f"{advert.member} joined with row {before.row} of its ledger and booked session {session} in another ledger, or "
            f"in row {receipt.head.row}; a booking is a new row."
        )
    return receipt


class ReceiptFile:
    """A run's `receipts.jsonl`: one receipt a line as canonical JSON, in the order in which they came.

    Guarantees:
      A receipt is whole on the disk when `add` returns, or not there. Nothing of them is kept in memory.
    """

    def __init__(self, path: Path) -> None:
        """Names the file; it need not exist."""
        self._path = path

    def add(self, receipt: Receipt) -> None:
        """Appends a receipt.

        Raises:
          RunError: the disk is full or gone; those before it are intact.
        """
        try:
            with self._path.open("ab+", buffering=0) as file:
                end = _whole_lines(file)
                _append(file, receipt.to_bytes() + b"\n", at=end)
            if end == 0:
                sync(self._path.parent)
        except OSError as error:
            raise RunError(
                f"The receipt of {receipt.hospital} for session {receipt.session} cannot be written to {self._path}: "
                f"{error.strerror}; make room on the disk and resume."
            ) from None


def _whole_lines(file: FileIO) -> int:
    """Cuts off what a killed process left of a line; returns where the next one starts."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            end = file.readall().rfind(b"\n") + 1
            file.truncate(end)
    return end


def _append(file: FileIO, line: bytes, *, at: int) -> None:
    try:
        if file.write(line) != len(line):  # a nearly full disk takes a part without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(at)
        raise
