"""The SQLite file in which a hospital keeps, for one population and for life, what it did and what that cost.

There is no secret in it. Whatever is written is on the disk before anything that rests on it is sent. One file holds the
ledger (`clients/ledger.py`) and the sessions (`clients/store.py`), so that a session is booked and opened at once or not
at all.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote

from clients.site import Site
from fedslm.errors import RunError

SUFFIX = ".sqlite"
VERSION = 3
BUSY_S = 5.0

_TABLES = """
CREATE TABLE owner (hospital TEXT NOT NULL) STRICT;
CREATE TABLE sessions (
  run TEXT NOT NULL, session INTEGER NOT NULL, round INTEGER NOT NULL, adapter BLOB NOT NULL, context BLOB NOT NULL,
  names TEXT NOT NULL, threshold INTEGER NOT NULL, excused TEXT, PRIMARY KEY (run, session)) STRICT;
CREATE TABLE answers (
  run TEXT NOT NULL, session INTEGER NOT NULL, step TEXT NOT NULL, reply_sha256 BLOB NOT NULL,
  UNIQUE (run, session, step), FOREIGN KEY (run, session) REFERENCES sessions (run, session)) STRICT;
CREATE TABLE aborts (
  run TEXT NOT NULL, session INTEGER NOT NULL,
  PRIMARY KEY (run, session), FOREIGN KEY (run, session) REFERENCES sessions (run, session)) STRICT;
CREATE TABLE adverts (
  serial INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, advert BLOB NOT NULL, session INTEGER) STRICT;
CREATE TABLE rosters (root TEXT NOT NULL PRIMARY KEY, serial INTEGER NOT NULL) STRICT;
CREATE TABLE ledger (number INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE signatures (
  number INTEGER PRIMARY KEY, signature BLOB NOT NULL, FOREIGN KEY (number) REFERENCES ledger (number)) STRICT;
CREATE TABLE heads (
  signer BLOB NOT NULL, ledger TEXT NOT NULL, scope BLOB NOT NULL, number INTEGER NOT NULL, proof BLOB NOT NULL,
  PRIMARY KEY (signer, ledger, scope)) STRICT;
CREATE TABLE patients (code BLOB PRIMARY KEY, side TEXT) STRICT, WITHOUT ROWID;
"""


class Database:
    """The file, open. A context manager; one process or several, one thread each.

    Every block of `transaction` that wrote has written to the disk when it ends, and raises RunError where that was not
    possible.
    """

    def __init__(self, folder: Path, *, hospital: str, population: str) -> None:
        """Opens the population's file in `folder`, and makes both where there is none, readable for this account only.

        Args:
          hospital: whose it is; the first to open it has it for good.
        Raises:
          RunError: the disk is full or read-only, the file is damaged or of another version, or another hospital's.
        """
        self.folder = folder
        self.path = folder / f"{population}{SUFFIX}"
        self.hospital = hospital
        with self._in_words():
            self._db = _connect(folder, self.path)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the file go."""
        self._db.close()

    @property
    def others(self) -> tuple[Path, ...]:
        """The files of this hospital's other populations."""
        return tuple(sorted(path for path in self.folder.glob(f"*{SUFFIX}") if path != self.path))

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A block that only reads.

        Raises:
          RunError: the file cannot be read.
        """
        with self._in_words():
            yield self._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block is on the disk when it ends, or nothing of it; no other process writes meanwhile.

        A block inside another belongs to the outer one.

        Raises:
          RunError: see the class.
        """
        if self._db.in_transaction:
            yield self._db
            return
        with self._in_words():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        with self.transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _TABLES.split(";\n"):
                    db.execute(statement)
                db.execute("INSERT INTO owner VALUES (?)", (self.hospital,))
                db.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise RunError(f"The store {self.path} has version {version}; this release reads version {VERSION}.")
            (owner,) = db.execute("SELECT hospital FROM owner").fetchone()
        if owner != self.hospital:
            raise RunError(
                f"The store {self.path} is that of {owner}; name another state_folder in site.yaml of {self.hospital}."
            )

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(
                f"The store {self.path} cannot be used: {reason}; nothing was sent. "
                "Make room on the disk, allow this account to write there, or restore the newest copy of the file."
            ) from None


@contextlib.contextmanager
def reading_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens another population's file, changing nothing.

    Raises:
      sqlite3.Error: it cannot be read.
    """
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
        yield db


def open_database(site: Site) -> Database:
    """Opens the file of a site's population; see `Database`.

    Raises:
      ConfigError: the site names no state folder. RunError: the file cannot be used.
    """
    return Database(site.home().state_folder, hospital=site.hospital, population=site.population)


def _connect(folder: Path, path: Path) -> sqlite3.Connection:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        # Made here, so that SQLite gives its other files the same permissions. Never opened again: closing it would give
        # away the locks that another connection of this process has on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a commit has reached the disk
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db
