"""Nothing is done twice: not a session, not a step, not an advert; whatever process asks, and after whatever crash."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients.database import Database
from clients.store import Session, Step, Store
from fedslm.errors import AdvertError, RosterError, RunError, SessionError
from tests.server.test_checkpoints import full_disk

ROOT = Path(__file__).resolve().parents[2]
FILE_NAME = "patients.sqlite"
RUN, OTHER = "a" * 64, "b" * 64
ADAPTER = b"\1" * 32
Excused = tuple[int, ...] | None


@contextmanager
def opened(folder: Path, *, hospital: str = "hospital-0") -> Iterator[Store]:
    with Database(folder, hospital=hospital, population="patients") as database:
        yield Store(database)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "state") as store:
        yield store


def session(number: int, *, run: str = RUN, adapter: bytes = ADAPTER, excused: Excused = None) -> Session:
    return Session(
        run=run,
        number=number,
        round=1,
        adapter=adapter,
        context=bytes([number]) * 32,
        names=("hospital-0", "hospital-1", "Zürich"),
        threshold=2,
        excused=excused,
    )


def book(store: Store, number: int, *, run: str = RUN, adapter: bytes = ADAPTER, excused: Excused = None) -> Session:
    booked = session(number, run=run, adapter=adapter, excused=excused)
    store.open(booked, advert=issue(store, run))
    return booked


def issue(store: Store, run: str = RUN) -> int:
    return store.issue(run, lambda serial: f"advert {serial}".encode()).serial


def answer(store: Store, booked: Session, *steps: Step) -> None:
    for step in steps:
        store.commit(booked, step, b"reply")


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_what_was_booked_is_what_is_expected(store: Store) -> None:
    booked = book(store, 3)
    assert store.expect(RUN, Step.SHARE) == booked
    assert store.is_newest(booked)


@pytest.mark.parametrize("number", [1, 4, 5])
def test_a_session_number_only_goes_up(store: Store, number: int) -> None:
    book(store, 5)
    serial = issue(store)
    with pytest.raises(SessionError, match="opened session 5"):
        store.open(session(number), advert=serial)
    store.open(session(6), advert=serial)  # the refusal used nothing up


def test_numbers_are_counted_for_each_run_by_itself(store: Store) -> None:
    book(store, 5)
    book(store, 1, run=OTHER)
    assert store.expect(RUN, Step.SHARE).number == 5
    assert store.expect(OTHER, Step.SHARE).number == 1


def test_a_number_stays_taken_in_the_next_process(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        book(first, 2)
    with opened(tmp_path) as second, pytest.raises(SessionError):
        book(second, 2)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_steps_are_answered_in_order_once(store: Store) -> None:
    booked = book(store, 1)
    for position, step in enumerate(Step):
        for other in list(Step)[position + 1 :]:
            with pytest.raises(SessionError, match="out of order"):
                store.commit(booked, other, b"")
        assert store.expect(RUN, step) == booked
        answer(store, booked, step)
        for earlier in list(Step)[: position + 1]:
            with pytest.raises(SessionError, match="answered before"):
                store.commit(booked, earlier, b"another reply")
            with pytest.raises(SessionError, match="answered before"):
                store.expect(RUN, earlier)


def test_a_newer_session_ends_the_one_before(store: Store) -> None:
    first = book(store, 1)
    answer(store, first, Step.SHARE)
    second = book(store, 2)
    with pytest.raises(SessionError):
        store.commit(first, Step.MASK, b"")
    assert not store.is_newest(first)
    answer(store, second, Step.SHARE)
    with pytest.raises(SessionError, match="newer"):
        store.commit(first, Step.MASK, b"")


def test_without_a_session_there_is_nothing_to_answer(store: Store) -> None:
    with pytest.raises(SessionError, match="no session"):
        store.expect(RUN, Step.MASK)
    with pytest.raises(SessionError):
        store.commit(session(1), Step.SHARE, b"")


def test_an_answers_row_holds_its_hash_and_nothing_of_it(tmp_path: Path) -> None:
    import hashlib

    with opened(tmp_path) as store:
        store.commit(book(store, 1), Step.SHARE, b"zq7Xylophone")
    rows = sqlite3.connect(tmp_path / FILE_NAME).execute("SELECT step, reply_sha256 FROM answers").fetchall()
    assert rows == [("share", hashlib.sha256(b"zq7Xylophone").digest())]
    assert b"zq7Xylophone" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_of_two_processes_one_answers(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        booked = book(store, 1)
    outcomes: list[str] = []
    start = threading.Barrier(4)

    def commit() -> None:
        with opened(tmp_path) as mine:
            start.wait(20)
            try:
                mine.commit(booked, Step.SHARE, os.urandom(8))
                outcomes.append("answered")
            except SessionError:
                outcomes.append("refused")

    threads = [threading.Thread(target=commit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["answered", "refused", "refused", "refused"]


# --- abort or unmask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_after_an_abort_no_step_is_answered(store: Store, steps: int) -> None:
    booked = book(store, 1)
    answer(store, booked, *list(Step)[:steps])
    assert store.abort(RUN, 1) == booked
    with pytest.raises(SessionError, match="given up"):
        store.commit(booked, list(Step)[steps], b"")
    assert store.abort(RUN, 1) == booked  # the coordinator may have lost the first answer


def test_what_was_unmasked_is_not_given_up(store: Store) -> None:
    booked = book(store, 1)
    answer(store, booked, *Step)
    with pytest.raises(SessionError, match="unmasked"):
        store.abort(RUN, 1)


def test_an_older_session_can_still_be_given_up(store: Store) -> None:
    first = book(store, 1)
    answer(store, first, Step.SHARE, Step.MASK)
    second = book(store, 2)
    assert store.abort(RUN, 1) == first
    answer(store, second, Step.SHARE)


def test_only_a_session_of_ones_own_is_given_up(store: Store) -> None:
    book(store, 1)
    for run, number in ((RUN, 2), (OTHER, 1)):
        with pytest.raises(SessionError, match="was not in session"):
            store.abort(run, number)


def test_masked_for_tells_every_session_in_which_a_vector_left(store: Store) -> None:
    first = book(store, 1)
    answer(store, first, Step.SHARE, Step.MASK)
    second = book(store, 2)
    answer(store, second, Step.SHARE)
    elsewhere = book(store, 1, run=OTHER)
    answer(store, elsewhere, Step.SHARE, Step.MASK, Step.CONFIRM)
    store.abort(RUN, 1)
    assert store.masked_for(ADAPTER) == (first, elsewhere)
    assert store.masked_for(b"\2" * 32) == ()


# --- once for an adapter, without privacy -----------------------------------------------------------------------------


@pytest.mark.parametrize("excused", [None, (), (1,), (1, 7)])
def test_what_is_excused_comes_back(store: Store, excused: Excused) -> None:
    book(store, 8, excused=excused)
    assert store.expect(RUN, Step.SHARE).excused == excused


def test_of_two_open_sessions_on_one_adapter_one_masks(store: Store) -> None:
    first, second = (book(store, 1, run=run, excused=()) for run in (RUN, OTHER))
    for booked in (first, second):
        answer(store, booked, Step.SHARE)
    answer(store, first, Step.MASK)
    with pytest.raises(SessionError, match=f"session 1 of the run {RUN[:12]}.*no privacy"):
        store.commit(second, Step.MASK, b"reply")
    assert store.masked_for(ADAPTER) == (first,)
    answer(store, first, Step.CONFIRM, Step.UNMASK)  # and the refusal is of nobody else's session


def test_what_a_process_says_is_excused_is_not_asked_again(store: Store) -> None:
    first = book(store, 1, run=OTHER, excused=())
    answer(store, first, Step.SHARE, Step.MASK)
    second = book(store, 1, excused=())
    answer(store, second, Step.SHARE)
    for claimed in (None, (1,)):
        with pytest.raises(SessionError, match="no privacy"):
            store.commit(dataclasses.replace(second, excused=claimed), Step.MASK, b"reply")


@pytest.mark.parametrize("number", [1, 2])
def test_only_the_excused_sessions_of_the_same_run_do_not_count(store: Store, number: int) -> None:
    answer(store, book(store, number, excused=()), Step.SHARE, Step.MASK)
    store.abort(RUN, number)
    again = book(store, 3, excused=(1,))
    answer(store, again, Step.SHARE)
    elsewhere = book(store, 4, run=OTHER, excused=(number,))
    answer(store, elsewhere, Step.SHARE)
    with pytest.raises(SessionError, match="no privacy"):
        store.commit(elsewhere, Step.MASK, b"reply")
    if number == 1:
        answer(store, again, Step.MASK)
        return
    with pytest.raises(SessionError, match="no privacy"):
        store.commit(again, Step.MASK, b"reply")


def test_another_adapter_or_a_plan_with_privacy_is_masked_for_again(store: Store) -> None:
    answer(store, book(store, 1, excused=()), Step.SHARE, Step.MASK)
    answer(store, book(store, 2, adapter=b"\2" * 32, excused=()), Step.SHARE, Step.MASK)
    answer(store, book(store, 3), Step.SHARE, Step.MASK)


def test_of_two_processes_with_sessions_on_one_adapter_one_masks(tmp_path: Path) -> None:
    runs = [f"{number:064x}" for number in range(4)]
    with opened(tmp_path) as store:
        for run in runs:
            answer(store, book(store, 1, run=run, excused=()), Step.SHARE)
    outcomes: list[str] = []
    start = threading.Barrier(len(runs))

    def commit(run: str) -> None:
        with opened(tmp_path) as mine:
            start.wait(20)
            try:
                mine.commit(mine.expect(run, Step.MASK), Step.MASK, b"reply")
                outcomes.append("answered")
            except SessionError:
                outcomes.append("refused")

    threads = [threading.Thread(target=commit, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["answered", "refused", "refused", "refused"]


# --- runs in which nothing is under way -------------------------------------------------------------------------------


def finished(store: Store, *prefixes: str) -> list[str]:
    found: list[str] = []
    store.visit_finished(prefixes, found.append)
    return found


@pytest.mark.parametrize("steps", range(5))
def test_a_run_is_finished_when_its_newest_session_is_unmasked_or_given_up(store: Store, steps: int) -> None:
    answer(store, book(store, 1), *Step)
    assert finished(store, RUN[:12], OTHER[:12]) == [RUN[:12]]  # what this store does not know it does not judge
    booked = book(store, 2)
    answer(store, booked, *list(Step)[:steps])
    assert finished(store, RUN[:12]) == ([RUN[:12]] if steps == 4 else [])
    if steps < 4:
        store.abort(RUN, 2)
        assert finished(store, RUN[:12]) == [RUN[:12]]


def test_a_given_up_session_that_is_not_the_newest_finishes_nothing(store: Store) -> None:
    book(store, 1)
    store.abort(RUN, 1)
    book(store, 2)
    assert finished(store, RUN[:12]) == []


def test_runs_that_share_their_first_digits_are_finished_together(store: Store) -> None:
    twin = "a" * 63 + "b"
    book(store, 1)
    store.abort(RUN, 1)
    book(store, 1, run=twin)
    assert finished(store, RUN[:12]) == []
    store.abort(twin, 1)
    assert finished(store, RUN[:12]) == [RUN[:12]]


def test_no_session_is_opened_while_a_finished_run_is_visited(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(store, book(store, 1), *Step)
    serial = issue(store)
    monkeypatch.setattr("clients.database.BUSY_S", 0.05)
    with opened(tmp_path / "state") as other:

        def visit(prefix: str) -> None:
            with pytest.raises(RunError, match="locked"):
                other.open(session(2), advert=serial)

        store.visit_finished([RUN[:12]], visit)
        other.open(session(2), advert=serial)


# --- adverts and rosters ----------------------------------------------------------------------------------------------


def test_the_newest_advert_counts_and_is_used_once(store: Store) -> None:
    with pytest.raises(AdvertError, match="no unused advert"):
        store.advert(RUN)
    old, new = issue(store), issue(store)
    assert (store.advert(RUN).serial, store.advert(RUN).data) == (new, f"advert {new}".encode())
    store.open(session(1), advert=new)
    with pytest.raises(AdvertError, match="no unused advert"):
        store.advert(RUN)
    with pytest.raises(AdvertError, match="used in a session before"):
        store.open(session(2), advert=new)
    assert old != new


def test_a_serial_is_given_out_once_over_all_runs_and_processes(tmp_path: Path) -> None:
    serials = []
    for run in (RUN, OTHER, RUN):
        with opened(tmp_path) as store:
            serials += [issue(store, run), issue(store, run)]
    assert serials == sorted(set(serials))


def test_an_advert_of_another_run_is_not_taken(store: Store) -> None:
    serial = issue(store, OTHER)
    with pytest.raises(AdvertError):
        store.open(session(1), advert=serial)


def test_an_advert_that_could_not_be_made_leaves_nothing(store: Store) -> None:
    def fail(serial: int) -> bytes:
        raise ValueError("no key")

    with pytest.raises(ValueError, match="no key"):
        store.issue(RUN, fail)
    with pytest.raises(AdvertError):
        store.advert(RUN)


def test_a_roster_is_never_rolled_back(store: Store) -> None:
    for serial in (2, 2, 5):
        store.see_roster("root", serial)
    with pytest.raises(RosterError, match="serial 4 and this hospital has seen serial 5"):
        store.see_roster("root", 4)
    store.see_roster("another root", 1)
    store.see_roster("root", 5)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "state") as store:
            book(store, 1)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert FILE_NAME in modes
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_commit_waits_for_the_disk(store: Store) -> None:
    assert store._database._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._database._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("content", [b"not a database, " * 300, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(RunError, match=r"patients\.sqlite cannot be used: .*restore"), opened(tmp_path):
        pass
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(RunError, match="version 9"), opened(tmp_path):
        pass


def test_a_folder_is_one_hospitals_for_good(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        book(store, 1)
    with (
        pytest.raises(RunError, match=r"is that of hospital-0; name another state_folder in site\.yaml of hospital-1"),
        opened(tmp_path, hospital="hospital-1"),
    ):
        pass
    with opened(tmp_path) as store:
        assert store.expect(RUN, Step.SHARE)


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(RunError, match="cannot be used"), opened(tmp_path / "state"):
        pass


def test_a_locked_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.database.BUSY_S", 0.05)
    with opened(tmp_path) as store:
        booked = book(store, 1)
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="locked"):
            store.commit(booked, Step.SHARE, b"")
        other.execute("ROLLBACK")
        other.close()
        store.commit(booked, Step.SHARE, b"")


def test_a_full_disk_is_one_sentence_and_nothing_is_on_record(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        booked = book(store, 1)
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        with full_disk(1000), pytest.raises(RunError, match="nothing was sent"):
            store.commit(booked, Step.SHARE, b"")
        assert size
        store.commit(booked, Step.SHARE, b"")  # so it was not on record, and the store is as good as before


def test_a_read_only_file_is_one_sentence(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        booked = book(store, 1)
        store._database._db.execute("PRAGMA query_only = ON")
        with pytest.raises(RunError, match="readonly"):
            store.commit(booked, Step.SHARE, b"")


KILLED = """
import os, sys
from pathlib import Path
from clients.database import Database
from clients.store import Step, Store

store = Store(Database(Path(sys.argv[1]), hospital="hospital-0", population="patients"))
booked = store.expect("a" * 64, Step.SHARE)
store.commit(booked, Step.SHARE, b"reply")
os.kill(os.getpid(), 9)
"""


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        booked = book(store, 1)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    with opened(tmp_path) as store:
        with pytest.raises(SessionError, match="answered before"):
            store.commit(booked, Step.SHARE, b"")
        assert store.expect(RUN, Step.MASK) == booked


def test_a_session_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        session(1).number = 2  # type: ignore[misc]
