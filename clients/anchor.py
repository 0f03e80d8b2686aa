"""The anchor: the newest row of the ledger, noted a second time where a restored backup of the ledger does not reach it."""

from __future__ import annotations

from pathlib import Path

from fedslm.errors import LedgerError, RunError
from fedslm.files import replace_file
from fedslm.governance.receipt import Head


def read_anchor(path: Path) -> Head | None:
    """The noted head, or None where none was noted yet.

    Raises:
      LedgerError: the file is none of ours. RunError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        return Head.from_bytes(bytes.fromhex(data.decode().strip()))
    except (ValueError, LedgerError):
        raise LedgerError(
            f"The anchor {path} is damaged or something else; give anchor_file another name, or see fedslm ledger restore."
        ) from None


def write_anchor(path: Path, head: Head) -> None:
    """Notes a head; it is on the disk when this returns, and never half of it.

    Raises:
      RunError: it cannot be written.
    """

    def write(new: Path) -> None:
        new.touch(mode=0o600)
        new.write_text(head.to_bytes().hex() + "\n")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"The anchor {path} cannot be used: {error.strerror}; nothing was trained. Make its disk readable and writable for "
        "this account."
    )
