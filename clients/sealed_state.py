"""What a hospital keeps secret between two messages of a session, and nowhere but under lock.

Flower carries a node's state from message to message in memory and hands it around inside the hospital; it may be lost,
or an old one may come back. So nothing lies in it but locked: under a key that only this account can read, each piece
bound to the run, the session and the step it is for. The step is taken from the store, which never goes back: a state that
is older than the last answer does not open. The encoded update is too large for that way and lies in a file, locked under a
key of its own that is only in the state.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, RecordDict

from fedslm.crypto.prg import KEY_BYTES
from fedslm.crypto.seal import lock, unlock
from fedslm.encoding import pack
from fedslm.errors import ConfigError, RunError, SealError, SessionError
from fedslm.governance.keyfiles import create_file

KEY_FILE = "state.key"
WORK_FOLDER = "work"
RECORD = "fedslm-session"
MACHINE = "machine"
VECTOR_KEY = "vector-key"
OF_A_SESSION = (MACHINE, VECTOR_KEY)
SUFFIX = ".update"
DIGITS = 12


class SealedState:
    """The locked pieces of one run, in Flower's state and in the state folder. One thread at a time."""

    def __init__(self, folder: Path, state: RecordDict, *, run: str) -> None:
        """Reads the folder's key, or makes one on first use.

        Args:
          folder: the site's state folder.
          state: of Flower's `Context`; changed in place.
          run: SHA-256 of the plan, 64 hex digits.
        Raises:
          RunError: the key cannot be made or read, or others can read it.
        """
        self._work = folder / WORK_FOLDER
        self._state = state
        self._run = run
        self._key = _read_key(folder / KEY_FILE)

    def __repr__(self) -> str:
        return "SealedState(key hidden)"

    def keep(self, name: str, secret: bytes, *place: str) -> None:
        """Locks one piece under its name, in place of the one before."""
        record = self._state.config_records.get(RECORD, ConfigRecord())
        record[self._slot(name)] = lock(self._key, secret, associated=self._associated(name, *place))
        self._state[RECORD] = record

    def recall(self, name: str, *place: str) -> bytes:
        """Opens one piece.

        Args:
          place: what it must be from; the store says which that is.
        Raises:
          SessionError: it is lost, or from an earlier point: this hospital is out of the session.
        """
        sealed = self._state.config_records.get(RECORD, ConfigRecord()).get(self._slot(name))
        if not isinstance(sealed, bytes):
            raise SessionError("This hospital's state of the session is lost; it is out until the next session.")
        try:
            return unlock(self._key, sealed, associated=self._associated(name, *place))
        except SealError:
            raise SessionError(
                "This hospital's state is not the one of its last answer; it is out until the next session."
            ) from None

    def forget(self, *names: str) -> None:
        """Drops pieces; those that are not there as well."""
        record = self._state.config_records.get(RECORD, ConfigRecord())
        for name in names:
            record.pop(self._slot(name), None)

    def keep_vector(self, vector: npt.NDArray[np.uint32], *place: str) -> None:
        """Locks the encoded update in a file, under a key that is only in Flower's state.

        Raises:
          RunError: the file cannot be written.
        """
        key = os.urandom(KEY_BYTES)
        with _in_words(self._work):
            self._work.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(lock(key, vector, associated=self._associated(VECTOR_KEY, *place)))
        self.keep(VECTOR_KEY, key, *place)

    def recall_vector(self, *place: str) -> npt.NDArray[np.uint32]:
        """The encoded update, in memory that may be written to.

        Raises:
          SessionError: it is lost, or belongs to another session.
        """
        key = self.recall(VECTOR_KEY, *place)
        try:
            data = unlock(key, self._file.read_bytes(), associated=self._associated(VECTOR_KEY, *place))
        except (OSError, SealError):
            raise SessionError("This hospital's encoded update is lost; it is out until the next session.") from None
        return np.frombuffer(bytearray(data), dtype=np.uint32)

    def forget_vector(self) -> None:
        """Drops the encoded update and its key."""
        self.forget(VECTOR_KEY)
        with _in_words(self._work):
            self._file.unlink(missing_ok=True)

    @property
    def other_runs(self) -> frozenset[str]:
        """The first digits of the other runs of which a session has left something: a process was killed, say.

        The key of an advert is not looked at: it is for a session that is to come.
        """
        record = self._state.config_records.get(RECORD, ConfigRecord())
        pieces = {run for run, _, name in (slot.partition(".") for slot in record) if name in OF_A_SESSION}
        with _in_words(self._work):
            files = {path.name.removesuffix(SUFFIX) for path in self._work.glob(f"*{SUFFIX}")}
        return frozenset(pieces | files) - {self._run[:DIGITS]}

    def forget_run(self, digits: str) -> None:
        """Drops what a session of another run has left.

        Args:
          digits: one of `other_runs`. Nothing may be under way in that run.
        """
        record = self._state.config_records.get(RECORD, ConfigRecord())
        for name in OF_A_SESSION:
            record.pop(f"{digits}.{name}", None)
        with _in_words(self._work):
            (self._work / f"{digits}{SUFFIX}").unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self._work / f"{self._run[:DIGITS]}{SUFFIX}"

    def _slot(self, name: str) -> str:
        return f"{self._run[:DIGITS]}.{name}"

    def _associated(self, name: str, *place: str) -> bytes:
        return pack(b"state", name.encode(), self._run.encode(), *(part.encode() for part in place))


def _read_key(path: Path) -> bytes:
    with _in_words(path):
        if not path.exists():
            _make_key(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        key = path.read_bytes()
    if mode & 0o077 or len(key) != KEY_BYTES:
        raise RunError(
            f"{path} is damaged or can be read by others (mode {mode:04o}); remove it, and a new one is made: "
            "this hospital is then out until the next session."
        )
    return key


def _make_key(path: Path) -> None:
    try:
        create_file(path, os.urandom(KEY_BYTES), mode=0o600)
    except ConfigError as error:
        raise RunError(str(error)) from None


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be used: {error.strerror}; nothing was sent.") from None
