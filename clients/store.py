"""What this hospital took part in, for ever: sessions of secure aggregation, its answers, its adverts, rosters it saw.

It says what was done, so that nothing is done twice. Every answer is written here, and written through to the disk, before
it is sent: a process that is killed at any point can only have answered less than it says here. The secrets between two
answers are in `sealed_state`; they open only under what stands here.
"""

from __future__ import annotations

import enum
import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from clients.database import Database
from fedslm.errors import AdvertError, RosterError, SessionError


class Step(enum.StrEnum):
    """The answers of a session, in their only order."""

    SHARE = "share"
    MASK = "mask"
    CONFIRM = "confirm"
    UNMASK = "unmask"


_ORDER = tuple(Step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that this hospital opened.

    Attributes:
      run: SHA-256 of the plan, 64 hex digits.
      adapter: SHA-256 of the adapter it is about, 32 bytes.
      context: of the session, 32 bytes.
      names: the hospitals of U1 in the order of their points.
      threshold: t.
      excused: None under a plan with privacy. Without privacy an adapter is masked for once, and these are the earlier
        sessions of the run on the same adapter that enough hospitals had given up when this one was opened.
    """

    run: str
    number: int
    round: int
    adapter: bytes
    context: bytes
    names: tuple[str, ...]
    threshold: int
    excused: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedAdvert:
    """An advert that this hospital gave out and that no session has used."""

    serial: int
    data: bytes


class Store:
    """The sessions of one population.

    Guarantees:
      A session number is taken once a run, and only above every number before it.
      A step is answered once, after the step before it, in the newest session of its run, and not after an abort.
      A session is aborted or unmasked, never both.
      Without privacy an adapter is masked for once, whatever the run; only sessions that were given up do not count.

    Every method that writes has written to the disk when it returns, and raises RunError where that was not possible.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- sessions -------------------------------------------------------------------------------------------------

    def open(self, session: Session, *, advert: int) -> None:
        """Opens a session; from here on its number, and every lower one, is taken.

        Args:
          advert: serial of the hospital's own advert in it, which is used by that.
        Raises:
          SessionError: the number is not above the highest so far. AdvertError: the advert was used, or was never
            issued. RunError: see the class.
        """
        with self._database.transaction() as db:
            query = "SELECT COALESCE(MAX(session), 0) FROM sessions WHERE run = ?"
            (highest,) = db.execute(query, (session.run,)).fetchone()
            if session.number <= highest:
                raise SessionError(
                    f"Session {session.number} is not new: this hospital opened session {highest} of the run already."
                )
            used = "UPDATE adverts SET session = ? WHERE serial = ? AND run = ? AND session IS NULL"
            if db.execute(used, (session.number, advert, session.run)).rowcount != 1:
                raise AdvertError(f"The advert with serial {advert} was used in a session before; join again.")
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _row(session))

    def expect(self, run: str, step: Step) -> Session:
        """The newest session of a run, which must be waiting for this step.

        Raises:
          SessionError: there is none, it was aborted, the step was answered, or the one before it was not.
        """
        with self._database.reading() as db:
            return _expect(db, run, step)

    def commit(self, session: Session, step: Step, reply: bytes | memoryview) -> None:
        """Puts an answer on record, to be called before it is sent.

        Raises:
          SessionError: as `expect`, a newer session was opened meanwhile, or without privacy another session masked for
            the same adapter. RunError: see the class.
        """
        with self._database.transaction() as db:
            booked = _expect(db, session.run, step)
            if booked.number != session.number:
                raise SessionError(f"Session {session.number} is over: a newer one was opened.")
            if step is Step.MASK:
                _refuse_repetition(db, booked)
            digest = hashlib.sha256(reply).digest()
            db.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (session.run, session.number, str(step), digest))

    def abort(self, run: str, number: int) -> Session:
        """Gives a session up for ever: none of its steps is answered from here on.

        Asked again, it says the same: the coordinator may have lost the answer.

        Raises:
          SessionError: this hospital is not in that session, or has unmasked it. RunError: see the class.
        """
        with self._database.transaction() as db:
            session = _find(db, run, number)
            if Step.UNMASK in _answered(db, session):
                raise SessionError(f"Session {number} was unmasked by this hospital; it cannot be given up any more.")
            db.execute("INSERT OR IGNORE INTO aborts VALUES (?, ?)", (run, number))
            return session

    def is_newest(self, session: Session) -> bool:
        """Whether no later session of the run was opened."""
        with self._database.reading() as db:
            return _newest(db, session.run) == session

    def masked_for(self, adapter: bytes) -> tuple[Session, ...]:
        """The sessions on this adapter, of whatever run, in which a masked vector left this hospital."""
        with self._database.reading() as db:
            return _masked_for(db, adapter)

    def visit_finished(self, prefixes: Collection[str], visit: Callable[[str], None]) -> None:
        """Visits the runs in which nothing is under way, and none of their sessions is opened meanwhile.

        Args:
          prefixes: first digits of the runs to look at.
          visit: called with the prefix of each run whose newest session was unmasked or given up.
        """
        if not prefixes:
            return
        with self._database.transaction() as db:
            for prefix in sorted(prefixes):
                if _is_finished(db, prefix):
                    visit(prefix)

    # --- adverts and rosters --------------------------------------------------------------------------------------

    def issue(self, run: str, make: Callable[[int], bytes]) -> IssuedAdvert:
        """Makes this hospital's next advert for a run, under a serial that no other has; the ones before are void.

        Only the newest is kept: whoever asks for adverts again and again does not fill the disk.
        """
        with self._database.transaction() as db:
            db.execute("DELETE FROM adverts WHERE run = ?", (run,))
            serial = int(db.execute("INSERT INTO adverts (run, advert) VALUES (?, x'')", (run,)).lastrowid or 0)
            data = make(serial)
            db.execute("UPDATE adverts SET advert = ? WHERE serial = ?", (data, serial))
            return IssuedAdvert(serial=serial, data=data)

    def advert(self, run: str) -> IssuedAdvert:
        """The advert that this hospital gave out last for a run.

        Raises:
          AdvertError: it gave out none, or a session has used it.
        """
        query = "SELECT serial, advert, session FROM adverts WHERE run = ?"
        with self._database.reading() as db:
            row = db.execute(query, (run,)).fetchone()
        if row is None or row[2] is not None:
            raise AdvertError("This hospital has no unused advert for the run; it must be asked to join again.")
        return IssuedAdvert(serial=row[0], data=row[1])

    def see_roster(self, root: str, serial: int) -> None:
        """Remembers the highest serial of a consortium's rosters.

        Args:
          root: whose rosters; the fingerprint of the consortium's root.
        Raises:
          RosterError: a later roster was seen: going back could undo a revocation. RunError: see the class.
        """
        with self._database.transaction() as db:
            row = db.execute("SELECT serial FROM rosters WHERE root = ?", (root,)).fetchone()
            if row is not None and serial < row[0]:
                raise RosterError(
                    f"The roster has serial {serial} and this hospital has seen serial {row[0]}; "
                    "ask the consortium for the newest roster and pin that."
                )
            if row is None or serial > row[0]:
                db.execute("INSERT OR REPLACE INTO rosters VALUES (?, ?)", (root, serial))


def _expect(db: sqlite3.Connection, run: str, step: Step) -> Session:
    session = _newest(db, run)
    if session is None:
        raise SessionError(f"This hospital has opened no session of the run; the step '{step}' has nothing to rest on.")
    if _is_aborted(db, session):
        raise SessionError(f"Session {session.number} was given up by this hospital; it answers none of its steps.")
    answered = _answered(db, session)
    if step in answered:
        raise SessionError(f"The step '{step}' of session {session.number} was answered before; it never is again.")
    if answered != _ORDER[: _ORDER.index(step)]:
        raise SessionError(
            f"The step '{step}' of session {session.number} is out of order: answered so far is "
            f"{', '.join(answered) or 'nothing'}."
        )
    return session


def _refuse_repetition(db: sqlite3.Connection, session: Session) -> None:
    """What was checked when the session was opened may have changed: another run, or process, may have masked since."""
    if session.excused is None:
        return
    for other in _masked_for(db, session.adapter):
        if other.run != session.run or other.number not in session.excused:
            raise SessionError(
                f"This hospital masked for the same adapter in session {other.number} of the run {other.run[:12]}, after "
                f"it opened session {session.number} of {session.run[:12]}; the plan has no privacy."
            )


def _masked_for(db: sqlite3.Connection, adapter: bytes) -> tuple[Session, ...]:
    query = (
        "SELECT s.* FROM sessions s JOIN answers a ON a.run = s.run AND a.session = s.session "
        "WHERE s.adapter = ? AND a.step = ? ORDER BY s.run, s.session"
    )
    return tuple(_session(row) for row in db.execute(query, (adapter, str(Step.MASK))))


def _is_finished(db: sqlite3.Connection, prefix: str) -> bool:
    runs = db.execute("SELECT DISTINCT run FROM sessions WHERE substr(run, 1, ?) = ?", (len(prefix), prefix)).fetchall()
    newest = [session for (run,) in runs if (session := _newest(db, run)) is not None]
    return bool(newest) and all(_is_over(db, session) for session in newest)


def _is_over(db: sqlite3.Connection, session: Session) -> bool:
    return Step.UNMASK in _answered(db, session) or _is_aborted(db, session)


def _is_aborted(db: sqlite3.Connection, session: Session) -> bool:
    query = "SELECT 1 FROM aborts WHERE run = ? AND session = ?"
    return db.execute(query, (session.run, session.number)).fetchone() is not None


def _newest(db: sqlite3.Connection, run: str) -> Session | None:
    row = db.execute("SELECT * FROM sessions WHERE run = ? ORDER BY session DESC LIMIT 1", (run,)).fetchone()
    return None if row is None else _session(row)


def _answered(db: sqlite3.Connection, session: Session) -> tuple[Step, ...]:
    rows = db.execute("SELECT step FROM answers WHERE run = ? AND session = ?", (session.run, session.number))
    found = {row[0] for row in rows}
    return tuple(step for step in _ORDER if step in found)


def _find(db: sqlite3.Connection, run: str, number: int) -> Session:
    row = db.execute("SELECT * FROM sessions WHERE run = ? AND session = ?", (run, number)).fetchone()
    if row is None:
        raise SessionError(f"This hospital was not in session {number} of the run; there is nothing to give up.")
    return _session(row)


def _row(session: Session) -> tuple[Any, ...]:
    names = json.dumps(session.names)
    excused = None if session.excused is None else json.dumps(session.excused)
    place = session.run, session.number, session.round
    return *place, session.adapter, session.context, names, session.threshold, excused


def _session(row: tuple[Any, ...]) -> Session:
    run, number, round_, adapter, context, names, threshold, excused = row
    return Session(
        run=run,
        number=number,
        round=round_,
        adapter=adapter,
        context=context,
        names=tuple(json.loads(names)),
        threshold=threshold,
        excused=None if excused is None else tuple(json.loads(excused)),
    )
