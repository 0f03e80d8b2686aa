"""Whose records a population's ledger is for: codes of patient ids that say nothing to anybody without this hospital's key.

Two ledgers of one hospital are for different patients; else one patient could be charged to both and each would say that
there is something left. So every patient who is trained on is remembered, and refused under another population. The same
goes for held-out patients once their scores are released. From then on everybody's side is remembered, too: a patient who
was scored in one session and trained on in another would bear the cost of both, while a ledger charges the larger one.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from clients.agreement import own_identity
from clients.database import Database, open_database, reading_only
from clients.ledger import LedgerBook
from clients.records import Records
from clients.site import Site
from fedslm.crypto.prg import KEY_BYTES
from fedslm.data.example import Example
from fedslm.encoding import pack
from fedslm.errors import ConfigError, DataError, LedgerError, RunError
from fedslm.governance.keyfiles import create_file

KEY_FILE = "patients.key"
TRAINED, HELD_OUT = "trained", "held out"
_BATCH = 500
_ENTER = """
INSERT INTO patients VALUES (?, ?)
ON CONFLICT (code) DO UPDATE SET side = excluded.side WHERE side IS NULL AND excluded.side IS NOT NULL
"""


class PatientRegister:
    """The patients of one population, by code.

    Guarantees: a patient is in the register of one population of a hospital at most, and on one side of it for good. The key
    never leaves the folder.
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

    def enter(self, trained: Iterable[str], *, held_out: Iterable[str] | None = None) -> None:
        """Enters the patients whose records are about to be used.

        Args:
          trained: ids of those who are trained on, each any number of times.
          held_out: of those whose scores are about to be released; None where no scores are.
        Raises:
          DataError: some belong to another population, are on both sides, or were on the other side before. Nobody is
            entered then, and nobody is named. RunError: it cannot be written.
        """
        sides = {TRAINED: self._codes(trained), HELD_OUT: self._codes(held_out or ())}
        if shared := len(sides[TRAINED] & sides[HELD_OUT]):
            raise DataError(
                f"{shared} patients of '{self._database.path.stem}' are both trained on and held out, but epsilon rests on "
                "each of them being one or the other; put all records of a patient on one side."
            )
        self._refuse_others(sides[TRAINED] | sides[HELD_OUT])
        with self._database.transaction() as db:
            self._refuse_changed(db, sides)
            for side, codes in sides.items():
                rows = ((code, None if held_out is None else side) for code in codes)
                db.executemany(_ENTER, rows)

    def _codes(self, patients: Iterable[str]) -> set[bytes]:
        return {hmac.digest(self._key, b"patient" + patient.encode(), "sha256") for patient in patients}

    def _refuse_others(self, codes: set[bytes]) -> None:
        for other in self._database.others:
            if shared := _count_shared(other, codes):
                raise DataError(
                    f"{shared} of {len(codes)} patients are in the population '{other.stem}' of this hospital already, and a "
                    f"patient has one ledger; take them out of '{self._database.path.stem}', or train under the other."
                )

    def _refuse_changed(self, db: sqlite3.Connection, sides: dict[str, set[bytes]]) -> None:
        """Also where no scores are released this time: another plan under way may go on to release some."""
        for side, before in ((TRAINED, HELD_OUT), (HELD_OUT, TRAINED)):
            changed = sum(_count(db, batch, side=before) for batch in _batches(sides[side]))
            if changed:
                raise DataError(
                    f"{changed} patients of '{self._database.path.stem}' were {before} when scores were released and would be "
                    f"{side} now, but epsilon rests on a patient staying on one side for good; put them back, or leave "
                    "them out."
                )


def enrol(site: Site, records: Records, *, scored: bool) -> None:
    """Puts on record whose records are about to be used, and that they changed where they did.

    Args:
      scored: whether scores of the held-out patients are about to be released.
    Raises:
      DataError: see `PatientRegister.enter`; or held-out records to be scored do not say whose they are.
      LedgerError, RunError: see `PatientRegister` and `LedgerBook`.
    """
    with open_database(site) as database:
        register = PatientRegister(database)
        trained = (example.patient_id for example in records.train if example.patient_id is not None)
        register.enter(trained, held_out=_held_out(site, records) if scored else None)
        fingerprint = register.fingerprint(_bytes(example) for example in (*records.train, *records.held_out))
        LedgerBook(database, site=site, identity=own_identity(site)).see_data(fingerprint)


def _held_out(site: Site, records: Records) -> list[str]:
    named = [example.patient_id for example in records.held_out if example.patient_id is not None]
    if missing := len(records.held_out) - len(named):
        raise DataError(
            f"{missing} held-out rows of {site.hospital} have no patient id, but scores are noised by the patient; map a "
            "column to it (in a simulation data.columns.patient_id), or agree on a plan with privacy.scores=none."
        )
    return named


def _bytes(example: Example) -> bytes:
    texts = (example.patient_id or "", example.prompt, example.completion, *example.choices)
    return pack(*(text.encode(errors="surrogatepass") for text in texts))


def _count_shared(path: Path, codes: set[bytes]) -> int:
    try:
        with reading_only(path) as db:
            return sum(_count(db, batch) for batch in _batches(codes))
    except sqlite3.Error as error:
        raise RunError(
            f"The store {path} cannot be read: {error}; nothing was trained, as its patients may be among these."
        ) from None


def _count(db: sqlite3.Connection, codes: list[bytes], *, side: str | None = None) -> int:
    """How many of these codes are registered, on a certain side where one is given."""
    marks, on_side = ", ".join("?" * len(codes)), "" if side is None else " AND side = ?"
    query = f"SELECT COUNT(*) FROM patients WHERE code IN ({marks}){on_side}"
    (count,) = db.execute(query, [*codes, *([] if side is None else [side])]).fetchone()
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
