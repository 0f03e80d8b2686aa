"""Whose records a population's ledger is for: codes of patient ids that say nothing to anybody without this hospital's key.

Two ledgers of one hospital are for different patients; else one patient could be charged to both and each would say that
there is something left. So every patient who is trained on is remembered, and refused under another population.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from clients.database import Database
from clients.ledger import open_ledger
from clients.site import Site
from fedslm.crypto.prg import KEY_BYTES
from fedslm.data.example import Example
from fedslm.encoding import pack
from fedslm.errors import ConfigError, DataError, LedgerError, RunError
from fedslm.governance.keyfiles import create_file

KEY_FILE = "patients.key"
_BATCH = 500


class PatientRegister:
    """The patients of one population, by code.

    Guarantees: a patient is in the register of one population of a hospital at most. The key never leaves the folder.
    """

    def __init__(self, database: Database) -> None:
        """Reads the hospital's key for codes, or makes it on first use.

        Raises:
          LedgerError: the key is gone while patients are registered. RunError: it cannot be read or made.
        """
        self._database = database
        self._key = _read_key(database)

    def fingerprint(self, parts: Iterable[bytes]) -> str:
        """A keyed hash over all records, 64 hex digits: it changes when they do and is comparable by this hospital only."""
        digest = hmac.new(self._key, b"records", "sha256")
        for part in parts:
            digest.update(pack(part))
        return digest.hexdigest()

    def enter(self, patients: Iterable[str]) -> None:
        """Enters the patients who are about to be trained on.

        Args:
          patients: their ids, each any number of times.
        Raises:
          DataError: some belong to another population. RunError: it cannot be written.
        """
        codes = {hmac.digest(self._key, b"patient" + patient.encode(), "sha256") for patient in patients}
        for other in self._database.others:
            if shared := _count_shared(other, codes):
                raise DataError(
                    f"{shared} of {len(codes)} patients are in the population '{other.stem}' of this hospital already, and a "
                    f"patient has one ledger; take them out of '{self._database.path.stem}', or train under the other."
                )
        with self._database.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO patients VALUES (?)", ((code,) for code in codes))


def enrol(site: Site, examples: Sequence[Example]) -> None:
    """Puts on record whose records are about to be trained on, and that they changed where they did.

    Raises:
      DataError, LedgerError, RunError: see `PatientRegister` and `LedgerBook`.
    """
    with Database(site.home().state_folder, hospital=site.hospital, population=site.population) as database:
        register = PatientRegister(database)
        register.enter(example.patient_id for example in examples if example.patient_id is not None)
        fingerprint = register.fingerprint(_bytes(example) for example in examples)
    with open_ledger(site) as ledger:
        ledger.see_data(fingerprint)


def _bytes(example: Example) -> bytes:
    texts = (example.patient_id or "", example.prompt, example.completion, *example.choices)
    return pack(*(text.encode(errors="surrogatepass") for text in texts))


def _count_shared(path: Path, codes: set[bytes]) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            return sum(_count(db, batch) for batch in _batches(codes))
    except sqlite3.Error as error:
        raise RunError(
            f"The store {path} cannot be read: {error}; nothing was trained, as its patients may be among these."
        ) from None


def _count(db: sqlite3.Connection, codes: list[bytes]) -> int:
    marks = ", ".join("?" * len(codes))
    (count,) = db.execute(f"SELECT COUNT(*) FROM patients WHERE code IN ({marks})", codes).fetchone()
    return int(count)


def _batches(codes: set[bytes]) -> Iterator[list[bytes]]:
    ordered = sorted(codes)
    return (ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH))


def _read_key(database: Database) -> bytes:
    path = database.folder / KEY_FILE
    try:
        if not path.exists():
            _require_unused(database, path)
            create_file(path, os.urandom(KEY_BYTES), mode=0o600)
        key = path.read_bytes()
    except (OSError, ConfigError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"The key {path} cannot be used: {reason}; nothing was trained.") from None
    if len(key) != KEY_BYTES:
        raise LedgerError(
            f"The key {path} is damaged; bring back the copy of it that belongs to the ledgers beside it."
        )
    return key


def _require_unused(database: Database, path: Path) -> None:
    """A new key would know nobody again."""
    with database.reading() as db:
        registered = db.execute("SELECT 1 FROM patients LIMIT 1").fetchone() is not None
    if registered or database.others:
        raise LedgerError(f"The key {path} is gone, without which no patient is known again; bring back its copy.")
