"""What a hospital keeps between two messages is locked, is the newest or of no use, and is gone in the end."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from clients import sealed_state
from clients.sealed_state import SealedState
from fedslm.errors import DecodeError, RunError, SessionError
from fedslm.flower.records import MASK
from fedslm.secagg.hospital import Confirmed, Masked, Shared
from fedslm.secagg.wire import decode, kind_of
from tests.clients.table import KEPT, NAMES, ONE, THREE, TWO, Session, Table, code
from tests.server.test_checkpoints import full_disk

# --- what is left behind ----------------------------------------------------------------------------------------------


def test_after_a_session_nothing_secret_is_left(table: Table) -> None:
    started = Session(table, table.opening(1))
    started.train()
    for name in NAMES:
        assert {path.split("/")[0] for path in table.files(name)} == {*KEPT, "work"}
        assert {slot.split(".")[1] for slot in table.state(name)} == {"machine", "vector-key", "advert"}
    started.mask()
    for name in NAMES:
        assert table.files(name) == KEPT
        assert {slot.split(".")[1] for slot in table.state(name)} == {"machine", "advert"}
    started.confirm()
    started.unmask()
    for name in NAMES:
        assert table.files(name) == KEPT
        assert {slot.split(".")[1] for slot in table.state(name)} == {"advert"}


def secrets_in(plaintext: bytes) -> list[bytes]:
    """The secret fields of a state, or all of what is no state."""
    try:
        kind = kind_of(plaintext)
    except DecodeError:
        return [plaintext]
    if kind == Confirmed.LAYOUT.kind:
        return secrets_in(decode(Confirmed, plaintext).masked)
    if kind == Masked.LAYOUT.kind:
        return [share for _, share in decode(Masked, plaintext).shares]
    state = decode(Shared, plaintext)
    return [state.seeds, state.own_share, state.sealing_key]


def test_what_is_kept_is_locked(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every secret of every step, caught on its way into the lock, is looked for in everything that is kept."""
    secrets: list[bytes] = []
    lock = sealed_state.lock

    def listening(key: bytes, data: Any, **more: Any) -> bytes:
        secrets.extend([key, *secrets_in(bytes(data))])
        return lock(key, data, **more)

    monkeypatch.setattr(sealed_state, "lock", listening)
    started = Session(table, table.opening(1))
    for step in (started.train, started.mask, started.confirm):
        step()
        for name in NAMES:
            folder = Path(str(table.sites[name].state_folder))
            files = [path for path in folder.rglob("*") if path.is_file() and path.name != "state.key"]
            kept = [*(path.read_bytes() for path in files), *table.state(name).values()]
            assert not any(secret[:24] in data for data in kept for secret in secrets)
    assert len(secrets) > 40


def test_files_are_for_this_account_only(table: Table) -> None:
    before = os.umask(0)
    try:
        Session(table, table.opening(1)).train()
    finally:
        os.umask(before)
    for name in NAMES:
        folder = Path(str(table.sites[name].state_folder))
        assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()} == {"0o600"}
        assert {oct(path.stat().st_mode & 0o777) for path in (folder, folder / "work")} == {"0o700"}


# --- a state that is lost or old --------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_lost_state_makes_a_dropout_and_the_next_session_works(table: Table, done: int) -> None:
    started = Session(table, table.opening(1))
    for step in started.steps[:done]:
        step()
    table.forget(ONE)
    for step in started.steps[done:]:
        summed = step()
    assert started.refused == {ONE: "SESSION_REFUSED"}
    np.testing.assert_allclose(summed, table.expected(*(NAMES if done > 1 else NAMES[1:])), atol=1e-7)
    table.join(ONE)
    np.testing.assert_allclose(table.run(2), table.expected(), atol=1e-7)


@pytest.mark.parametrize(("back_to", "done"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_an_older_state_is_refused(table: Table, back_to: int, done: int) -> None:
    started = Session(table, table.opening(1))
    states = [copy.deepcopy(table.contexts[ONE].state)]
    for step in started.steps[:done]:
        step()
        states.append(copy.deepcopy(table.contexts[ONE].state))
    table.contexts[ONE].state = states[back_to]
    for step in started.steps[done:]:
        step()
    assert started.refused == {ONE: "SESSION_REFUSED"}


def test_a_state_of_another_hospital_or_with_another_key_is_refused(table: Table) -> None:
    started = table.start(1)
    table.contexts[ONE].state = copy.deepcopy(table.contexts[TWO].state)
    (Path(str(table.sites[THREE].state_folder)) / "state.key").unlink()
    answers = {}
    for point, request in started.coordinator.mask_requests():
        answers[started.name(point)] = code(table.ask(started.name(point), MASK, request))
    assert answers == {ONE: "SESSION_REFUSED", TWO: "", THREE: "SESSION_REFUSED"}


def test_a_lost_or_damaged_work_file_makes_a_dropout(table: Table) -> None:
    started = table.start(1)
    (lost,), (damaged,) = (list((Path(str(table.sites[name].state_folder)) / "work").iterdir()) for name in (ONE, TWO))
    lost.unlink()
    data = bytearray(damaged.read_bytes())
    data[50] ^= 1
    damaged.write_bytes(data)
    answers = {}
    for point, request in started.coordinator.mask_requests():
        answers[started.name(point)] = code(table.ask(started.name(point), MASK, request))
    assert answers == {ONE: "SESSION_REFUSED", TWO: "SESSION_REFUSED", THREE: ""}


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)], ids=len)
def test_a_damaged_state_key_is_refused_with_what_to_do(table: Table, content: bytes) -> None:
    path = Path(str(table.sites[ONE].state_folder)) / "state.key"
    path.write_bytes(content)
    log = table.folder / "log"
    table.change_site(ONE, log_file=str(log))
    assert code(table.invite(ONE)) == "FAILED"
    assert "remove it" in log.read_text()
    path.unlink()
    assert code(table.invite(ONE)) == ""


def test_a_state_key_that_others_can_read_is_refused(table: Table) -> None:
    (Path(str(table.sites[ONE].state_folder)) / "state.key").chmod(0o640)
    assert code(table.invite(ONE)) == "FAILED"


# --- by itself --------------------------------------------------------------------------------------------------------


def opened(folder: Path, state: RecordDict, *, run: str = "a" * 64) -> SealedState:
    folder.mkdir(exist_ok=True)
    return SealedState(folder, state, run=run)


def test_a_piece_opens_only_as_what_it_was_kept_as(tmp_path: Path) -> None:
    state = RecordDict()
    opened(tmp_path, state).keep("machine", b"secret", "1", "share")
    again = opened(tmp_path, state)
    assert again.recall("machine", "1", "share") == b"secret"
    for name, place in (("machine", ("1", "mask")), ("machine", ("2", "share")), ("machine", ()), ("advert", ("1",))):
        with pytest.raises(SessionError):
            again.recall(name, *place)
    other_run = opened(tmp_path, state, run="a" * 63 + "b")
    with pytest.raises(SessionError, match="not the one of its last answer"):
        other_run.recall("machine", "1", "share")
    again.forget("machine", "advert")
    with pytest.raises(SessionError, match="lost"):
        again.recall("machine", "1", "share")


def test_two_runs_do_not_touch_each_other(tmp_path: Path) -> None:
    state = RecordDict()
    one, two = opened(tmp_path, state), opened(tmp_path, state, run="b" * 64)
    for number, sealed in enumerate((one, two)):
        sealed.keep("machine", bytes([number]))
        sealed.keep_vector(np.full(5, number, np.uint32), "1")
    two.forget("machine")
    two.forget_vector()
    assert one.recall("machine") == bytes([0])
    np.testing.assert_array_equal(one.recall_vector("1"), np.zeros(5, np.uint32))


def test_a_vector_comes_back_as_it_was_and_may_be_written_to(tmp_path: Path) -> None:
    vector = np.random.default_rng(0).integers(0, 2**32, 700_000, dtype=np.uint32)  # more than one chunk
    sealed = opened(tmp_path, RecordDict())
    sealed.keep_vector(vector, "1")
    found = sealed.recall_vector("1")
    np.testing.assert_array_equal(found, vector)
    found += np.uint32(1)
    with pytest.raises(SessionError):
        sealed.recall_vector("2")
    sealed.forget_vector()
    assert list((tmp_path / "work").iterdir()) == []
    sealed.forget_vector()


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    sealed = opened(tmp_path, RecordDict())
    with full_disk(1000), pytest.raises(RunError, match=r"cannot be used.*nothing was sent"):
        sealed.keep_vector(np.zeros(5000, np.uint32))
    sealed.forget_vector()
    assert list((tmp_path / "work").iterdir()) == []
    with full_disk(10), pytest.raises(RunError, match=r"state\.key cannot be written"):
        opened(tmp_path / "new", RecordDict())
    assert list((tmp_path / "new").iterdir()) == []


def test_its_repr_shows_no_key(tmp_path: Path) -> None:
    assert repr(opened(tmp_path, RecordDict())) == "SealedState(key hidden)"
