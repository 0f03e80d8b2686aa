"""A hospital's part in a session: what it refuses, what it keeps between messages, and that nothing is answered twice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clients.database import Database
from clients.store import Step, Store
from fedslm.crypto.identity import Identity
from fedslm.errors import ConsistencyError, RunError, ThresholdError
from fedslm.flower.records import (
    ABORT,
    ARRAYS,
    CONFIG,
    CONFIRM,
    MASK,
    SECAGG,
    TRAIN,
    UNMASK,
    put_secagg,
    secagg_bytes,
    to_array_record,
)
from fedslm.secagg.messages import HEAD_BYTES, AbortRequest, Advert, ConfirmRequest
from fedslm.secagg.wire import decode, encode
from tests.builders import UNPRIVATE
from tests.clients.table import (
    FIRST,
    KEPT,
    NAMES,
    ONE,
    OTHER,
    STEPS,
    THREE,
    TWO,
    Adapter,
    Session,
    Table,
    code,
    drawn_again,
    plan_for,
)

ROOT = Path(__file__).resolve().parents[2]


# --- a session that goes well -----------------------------------------------------------------------------------------


def test_the_sum_is_the_weighted_sum_of_the_updates(table: Table) -> None:
    for number in (1, 2, 5):
        np.testing.assert_allclose(table.run(number), table.expected(), atol=1e-7)


@pytest.mark.parametrize("lost", [TRAIN, MASK, CONFIRM, UNMASK])
def test_one_of_three_may_drop_out_at_every_step(table: Table, lost: str) -> None:
    summed = NAMES[1:] if lost in (TRAIN, MASK) else NAMES
    np.testing.assert_allclose(table.run(1, lose={lost: [ONE]}), table.expected(*summed), atol=1e-7)


def test_two_of_five_may_drop_out_wherever_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secagg = {"colluders": 0}  # so that three of five are enough
    table = Table(tmp_path, plan_for(5, secagg=secagg, privacy={"max_sessions": 50}), monkeypatch)
    for name in table.plan.names:
        table.change_site(name, min_colluders=0)
    first, second = "hospital-1", "hospital-4"
    for number, (one, two) in enumerate(itertools.combinations_with_replacement(STEPS, 2), start=1):
        table.join()
        lose = {step: [name for name, at in ((first, one), (second, two)) if at == step] for step in STEPS}
        summed = [name for name in table.plan.names if name not in [*lose[TRAIN], *lose[MASK]]]
        np.testing.assert_allclose(table.run(number, lose=lose), table.expected(*summed), atol=1e-7)


def test_below_the_bounds_there_is_no_sum(table: Table) -> None:
    for number, step in enumerate(STEPS, start=1):
        table.join()
        with pytest.raises(ThresholdError):
            table.run(number, lose={step: [ONE, TWO]})


def test_the_next_advert_rides_on_the_answer(table: Table) -> None:
    before = dict(table.adverts)
    table.run(1)
    assert set(table.adverts) == set(NAMES)
    for name in NAMES:
        old, new = decode(Advert, before[name]), decode(Advert, table.adverts[name])
        assert new.serial > old.serial
        assert new.sealing_key != old.sealing_key
    table.run(2)
    assert table.trained == [*NAMES, *NAMES]


def test_what_travels_is_not_the_update_nor_any_function_of_it_alone(table: Table) -> None:
    for name in NAMES:
        table.updates[name] = {"a": np.full((2, 2), 0.5, np.float32), "b": np.full(2, 0.5, np.float32)}
    first = Session(table, table.opening(1))
    first.train()
    first.mask()
    vectors = [secagg_bytes(reply)[-4 * 6 :] for _, kind, reply in table.replies if kind == MASK]
    numbers = [np.frombuffer(vector, "<u4") for vector in vectors]
    # Equal updates, equal coordinates: every masked number is different.
    assert len(np.unique(np.concatenate(numbers))) == 18


def test_a_simulation_rounds_the_same_way_again_and_another_attempt_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sums(folder: str, seed: int | None, *attempts: int) -> list[np.ndarray[Any, Any]]:
        secagg = {"ring_bits": 16}  # coarse, so that rounding shows
        table = Table(tmp_path / folder, plan_for(secagg=secagg, privacy={"max_sessions": 9}), monkeypatch, seed=seed)
        table.join()
        return [table.run(number, attempt=attempt) for number, attempt in enumerate(attempts, start=1)]

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first, again, other = sums("a", 7, 0, 0, 1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(sums("b", 7, 0)[0], first)
    one, two, three = sums("c", None, 0, 0, 0)
    assert not (np.array_equal(one, two) and np.array_equal(two, three))


# --- what an unfinished session leaves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_new_session_wipes_what_an_unfinished_one_left(table: Table, steps: int) -> None:
    unfinished = Session(table, table.opening(1))
    for step in (unfinished.train, unfinished.mask, unfinished.confirm)[:steps]:
        step()
    assert all("machine" in " ".join(table.state(name)) for name in NAMES)
    table.updates = dict.fromkeys(NAMES)  # and this time the training fails
    assert table.start(2).refused == dict.fromkeys(NAMES, "FAILED")
    for name in NAMES:
        assert table.files(name) == KEPT
        assert table.state(name) == {}


def test_a_session_that_could_not_be_shared_leaves_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no more files")

    with monkeypatch.context() as patch:
        patch.setattr("clients.session.hospital.share", fail)
        started = table.start(1)
    assert started.refused == dict.fromkeys(NAMES, "FAILED")
    for name in NAMES:
        assert table.files(name) == KEPT
        assert table.state(name) == {}
    table.join()
    np.testing.assert_allclose(table.run(2), table.expected(), atol=1e-7)


@pytest.mark.parametrize("step", range(4), ids=STEPS)
def test_what_cannot_be_put_on_record_is_not_sent(table: Table, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def full(*_: object) -> None:
        raise RunError("The disk is full.")

    started = Session(table, table.opening(1))
    send = table.send

    def sending(name: str, message: Message) -> Message:
        with monkeypatch.context() as patch:
            if name == ONE and message.metadata.message_type == STEPS[step]:
                patch.setattr(Store, "commit", full)
            return send(name, message)

    table.send = sending  # type: ignore[method-assign]
    summed = [act() for act in started.steps][-1]
    assert started.refused == {ONE: "FAILED"}
    np.testing.assert_allclose(summed, table.expected(*(NAMES if step > 1 else NAMES[1:])), atol=1e-7)


def test_a_hospital_makes_no_core_dump(table: Table) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    table.join(ONE)
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


# --- step 1: refused before a record is read --------------------------------------------------------------------------

Spoil = Callable[[Table, Session], Message]


def _with_opening(**changes: Any) -> Spoil:
    def spoil(table: Table, session: Session) -> Message:
        return table.train_message(dataclasses.replace(session.opening, **changes))

    return spoil


def _with_adverts(change: Callable[[Table, tuple[bytes, ...]], tuple[bytes, ...]]) -> Spoil:
    def spoil(table: Table, session: Session) -> Message:
        adverts = change(table, session.opening.adverts)
        return table.train_message(dataclasses.replace(session.opening, adverts=adverts))

    return spoil


def _with_config(**changes: Any) -> Spoil:
    def spoil(table: Table, session: Session) -> Message:
        session.message.content.config_records[CONFIG].update(changes)
        return session.message

    return spoil


def _with_content(change: Callable[[RecordDict], None]) -> Spoil:
    def spoil(table: Table, session: Session) -> Message:
        change(session.message.content)
        return session.message

    return spoil


def _advert_of(table: Table, member: str, key: bytes | None = None) -> bytes:
    """An advert in the name of a member, signed by an identity that is not in the roster."""
    old = decode(Advert, table.adverts[TWO])
    scope = bytes.fromhex(table.plan.sha256) + bytes.fromhex(table.roster.sha256)
    forged = Advert.sign(
        Identity.generate(),
        member=member,
        serial=9,
        sealing_key=key or old.sealing_key,
        ledger_head=old.ledger_head,
        scope=scope,
    )
    return encode(forged)


def _earlier(table: Table) -> bytes:
    """This hospital's advert before the newest."""
    old = table.adverts[ONE]
    table.join(ONE)
    return old


def _altered(data: bytes) -> bytes:
    advert = decode(Advert, data)
    return encode(dataclasses.replace(advert, ledger_head=b"\1" * HEAD_BYTES))


def _empty_arrays(content: RecordDict) -> None:
    content[ARRAYS] = to_array_record({"a": np.zeros(5, np.float32)})


@pytest.mark.parametrize(
    ("spoil", "refused"),
    [
        (_with_adverts(lambda table, adverts: adverts[:2]), "BOUND_BROKEN"),
        (_with_adverts(lambda table, adverts: ()), "BOUND_BROKEN"),
        (_with_adverts(lambda table, adverts: (adverts[0], adverts[1], adverts[1])), "ADVERT_REFUSED"),
        (_with_adverts(lambda table, adverts: adverts[::-1]), "ADVERT_REFUSED"),
        (_with_adverts(lambda table, adverts: (adverts[0], adverts[1], _altered(adverts[2]))), "ADVERT_REFUSED"),
        (_with_adverts(lambda table, adverts: (_altered(adverts[0]), *adverts[1:])), "ADVERT_REFUSED"),
        (_with_adverts(lambda table, adverts: (*adverts[:2], _advert_of(table, THREE))), "ADVERT_REFUSED"),
        (_with_adverts(lambda table, adverts: (*adverts, _advert_of(table, "intruder"))), "ADVERT_REFUSED"),
        (_with_adverts(lambda table, adverts: (_earlier(table), *adverts[1:])), "ADVERT_REFUSED"),
        (_with_adverts(lambda table, adverts: (adverts[0][:-1], *adverts[1:])), "MALFORMED"),
        (_with_adverts(lambda table, adverts: (adverts[0] + b"\0", *adverts[1:])), "MALFORMED"),
        (_with_adverts(lambda table, adverts: (b"", *adverts[1:])), "MALFORMED"),
        (_with_opening(session=0), "SESSION_REFUSED"),
        (_with_config(session=2), "INCONSISTENT"),
        (_with_config(attempt=1), "INCONSISTENT"),
        (_with_config(**{"server-round": 2}), "INCONSISTENT"),
        (_with_config(**{"server-round": 9}), "PLAN_REFUSED"),
        (_with_config(**{"plan-signature": b"\0" * 3373}), "SIGNATURE_REFUSED"),
        (_with_config(**{"plan-signature": b""}), "SIGNATURE_REFUSED"),
        (_with_config(**{"roster-sha256": b"\0" * 32}), "ROSTER_REFUSED"),
        (_with_config(**{"roster-sha256": "0" * 64}), "PLAN_REFUSED"),
        (_with_config(plan=b"{}"), "PLAN_REFUSED"),
        (_with_content(lambda content: content.pop(SECAGG)), "MALFORMED"),
        (_with_content(lambda content: content.update({SECAGG: put_secagg(b"FSLM")})), "MALFORMED"),
        (_with_content(_empty_arrays), "MODEL_UNAVAILABLE"),
    ],
)
def test_terms_that_break_a_rule_are_refused_before_a_record_is_read(table: Table, spoil: Spoil, refused: str) -> None:
    message = spoil(table, Session(table, table.opening(1)))
    assert code(table.send(ONE, message)) == refused
    assert table.trained == []
    folder = Path(str(table.sites[ONE].state_folder))
    with Database(folder, hospital=ONE, population="patients") as database:
        assert Store(database).advert(table.plan.sha256)  # nothing was booked, and its advert is as good as before
    table.join(ONE)
    np.testing.assert_allclose(table.run(1), table.expected(), atol=1e-7)


def test_a_session_without_this_hospital_is_none_of_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path, plan_for(5), monkeypatch)
    table.join()
    others = table.opening(1, names=table.plan.names[1:])
    assert code(table.send(ONE, table.train_message(others))) == "ADVERT_REFUSED"
    assert table.trained == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_session_number_is_taken_once_and_only_upwards(table: Table, number: int) -> None:
    table.run(3)
    assert code(table.send(ONE, table.train_message(table.opening(number)))) == "SESSION_REFUSED"
    assert table.trained == list(NAMES)


def test_one_advert_serves_one_session(table: Table) -> None:
    used = dict(table.adverts)
    table.run(1)
    fresh = dict(table.adverts)
    table.adverts = {**fresh, ONE: used[ONE]}
    assert code(table.send(ONE, table.train_message(table.opening(2)))) == "ADVERT_REFUSED"


def test_an_advert_whose_key_is_lost_serves_none(table: Table) -> None:
    table.forget(ONE)
    started = table.start(1)
    assert started.refused == {ONE: "SESSION_REFUSED"}
    assert ONE not in table.trained
    table.join(ONE)
    np.testing.assert_allclose(table.run(2), table.expected(), atol=1e-7)


def test_no_more_sessions_than_the_noise_was_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path, plan_for(privacy={"max_sessions": 2}), monkeypatch)
    table.join()
    for number in (1, 2):
        table.run(number)
    assert table.start(3).refused == dict.fromkeys(NAMES, "BUDGET_EXHAUSTED")
    assert len(table.trained) == 6


@pytest.mark.parametrize(("value", "refused"), [(np.nan, "NOT_FINITE"), (np.inf, "NOT_FINITE"), (5.0, "OUT_OF_RANGE")])
def test_an_update_that_cannot_be_encoded_stays(table: Table, value: float, refused: str) -> None:
    update = table.updates[ONE]
    assert update is not None
    update["b"][1] = value
    started = table.start(1)
    assert started.refused == {ONE: refused}
    assert table.files(ONE) == KEPT
    started.mask()
    started.confirm()
    np.testing.assert_allclose(started.unmask(), table.expected(TWO, THREE), atol=1e-7)


# --- steps 2 to 4: refused, and the state is as it was -----------------------------------------------------------------


def test_every_step_is_answered_once(table: Table) -> None:
    asked: list[tuple[str, Message]] = []
    started = Session(table, table.opening(1))
    send = table.send

    def remember(name: str, message: Message) -> Message:
        asked.append((name, message))
        return send(name, message)

    table.send = remember  # type: ignore[method-assign]
    for step in (started.train, started.mask, started.confirm, started.unmask):
        step()
    assert len(asked) == 12
    for name, message in asked:
        assert code(send(name, message)) in ("SESSION_REFUSED", "ADVERT_REFUSED")
    assert table.trained == list(NAMES)


def test_steps_out_of_order_are_refused(table: Table) -> None:
    started = table.start(1)
    point, request = next(started.coordinator.mask_requests())
    name = started.name(point)
    assert code(table.ask(name, CONFIRM, request)) == "SESSION_REFUSED"
    assert code(table.ask(name, UNMASK, request)) == "SESSION_REFUSED"
    assert code(table.ask(name, MASK, request)) == ""
    assert code(table.ask(name, UNMASK, request)) == "SESSION_REFUSED"


def test_without_a_session_no_step_is_answered(table: Table) -> None:
    for kind in (MASK, CONFIRM, UNMASK):
        assert code(table.ask(ONE, kind, b"FSLM")) == "SESSION_REFUSED"
    assert code(table.ask(ONE, ABORT, encode(AbortRequest(session=1)))) == "SESSION_REFUSED"


@pytest.mark.parametrize("kind", [MASK, CONFIRM, UNMASK])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:6] + bytes([data[6] ^ 1]) + data[7:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"",
    ],
    ids=["cut", "longer", "context", "last bit", "empty"],
)
def test_a_spoiled_request_is_refused_and_the_right_one_is_answered(
    table: Table, kind: str, spoil: Callable[[bytes], bytes]
) -> None:
    ask = table.ask
    refused: list[str] = []

    def spoiled_first(name: str, asked: str, data: bytes) -> Message:
        if asked == kind and name == ONE:
            before = table.state(ONE), table.files(ONE)
            refused.append(code(ask(name, asked, spoil(data))))
            assert not refused[0] or (table.state(ONE), table.files(ONE)) == before
        return ask(name, asked, data)

    table.ask = spoiled_first  # type: ignore[method-assign]
    summed = table.run(1)
    np.testing.assert_allclose(summed, table.expected(), atol=1e-7)
    allowed = {"MALFORMED", "INCONSISTENT", "CIPHERTEXT_REFUSED", "BOUND_BROKEN"}
    # An unmask request with one bad signature among more than t is still a good one: then the right one is refused.
    assert set(refused) <= allowed | {""}
    assert len(refused) == 1


def test_one_hospital_confirms_one_set_of_survivors(table: Table) -> None:
    started = table.start(1)
    started.mask()
    request = decode(ConfirmRequest, started.coordinator.confirm_request())
    two = dataclasses.replace(request, survivors=(1, 2))
    assert code(table.ask(ONE, CONFIRM, encode(two))) == ""
    assert code(table.ask(ONE, CONFIRM, encode(request))) == "SESSION_REFUSED"


def test_another_adapter_at_one_hospital_ends_in_no_sum(table: Table) -> None:
    opening = table.opening(1, round=2)  # round 1 starts from the plan's adapter or not at all
    started = Session(table, opening)
    other = table.train_message(opening, adapter=OTHER)
    send = table.send
    table.send = lambda name, message: send(name, other if name == ONE else message)  # type: ignore[method-assign]
    with pytest.raises(ConsistencyError):
        started.train()


# --- killed in the middle ---------------------------------------------------------------------------------------------


def killed(act: Callable[[], object]) -> None:
    """Does something in a child of this process, which is killed without a chance to clean up if it does not die in it."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def before_the_record(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


COMMIT = Store.commit


def after_the_record(store: Store, session: Any, step: Step, reply: bytes) -> None:
    COMMIT(store, session, step, reply)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["before the record", "before the reply", "before the state is kept"])
@pytest.mark.parametrize("step", range(4), ids=STEPS)
def test_killed_at_any_point_a_hospital_drops_out_and_answers_nothing_twice(
    table: Table, monkeypatch: pytest.MonkeyPatch, moment: str, step: int
) -> None:
    started = Session(table, table.opening(1))
    send, answered = table.send, []

    def dying(name: str, message: Message) -> Message:
        if name != ONE or message.metadata.message_type != STEPS[step]:
            return send(name, message)
        with monkeypatch.context() as patch:
            if moment == "before the record":
                patch.setattr(Store, "commit", before_the_record)
            elif moment == "before the reply":
                patch.setattr(Store, "commit", after_the_record)
            killed(lambda: send(name, message))  # and whatever it put into Flower's state died with it
        again = send(name, message)  # Flower, or a coordinator that wants to know, asks once more
        answered.append(code(again))
        return again

    table.send = dying  # type: ignore[method-assign]
    outcome = [act() for act in started.steps]
    may_answer = moment == "before the record" and step in (2, 3)
    if may_answer:  # nothing was on record and nothing had left, so that this is the first answer
        assert answered == [""]
        assert started.refused == {}
    else:
        assert answered[0] in ("SESSION_REFUSED", "ADVERT_REFUSED")
        assert set(started.refused) == {ONE}
    summed = NAMES if step > 1 else NAMES[1:]
    np.testing.assert_allclose(outcome[-1], table.expected(*summed), atol=1e-7)
    table.send = send  # type: ignore[method-assign]
    table.join(ONE)
    np.testing.assert_allclose(table.run(2), table.expected(), atol=1e-7)
    assert table.files(ONE) == KEPT


# --- giving a session up ----------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table whose plan has no privacy."""
    opened = Table(tmp_path, plan_for(privacy=UNPRIVATE), monkeypatch)
    opened.join()
    return opened


def test_without_privacy_an_adapter_is_masked_for_once(bare: Table) -> None:
    started = bare.start(1)
    started.mask()
    again = bare.start(2)
    assert again.refused == dict.fromkeys(NAMES, "SESSION_REFUSED")
    assert bare.trained == list(NAMES)
    bare.join()
    other = Session(bare, bare.opening(3, round=2), adapter=OTHER)
    other.train()
    other.mask()
    assert other.refused == {}


def beside(table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """The same hospitals, with the same state folders, in another run without privacy."""
    folder.mkdir()
    plan = plan_for(privacy=UNPRIVATE, nonce="f" * 32)
    other = Table(folder, plan, monkeypatch, identities=drawn_again(table, plan))
    for name in NAMES:
        other.change_site(name, state_folder=table.sites[name].state_folder)
    other.join()
    return other


def test_without_privacy_an_adapter_is_masked_for_once_in_all_runs_together(
    bare: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = beside(bare, tmp_path / "other", monkeypatch)
    first, second = bare.start(1), other.start(1)  # both before either has masked
    assert first.refused == second.refused == {}
    first.mask(but=[THREE])
    second.mask(but=[ONE])
    assert second.refused == {TWO: "SESSION_REFUSED"}
    assert len(first.abort()) == 3
    other.join()
    # What was given up in one run excuses nothing in another.
    assert other.start(2, aborts=first.abort()).refused[TWO] == "SESSION_REFUSED"


@pytest.mark.parametrize("adapter", [OTHER, ({**FIRST[0]}, {"f": np.zeros(3, np.float32)})], ids=["trained", "frozen"])
def test_another_adapter_than_the_plans_takes_no_session(table: Table, adapter: Adapter) -> None:
    message = table.train_message(table.opening(1), adapter=adapter)
    assert code(table.send(ONE, message)) == "MODEL_UNAVAILABLE"
    assert table.trained == []
    np.testing.assert_allclose(table.run(1), table.expected(), atol=1e-7)  # number and advert are as good as before


# --- one folder -------------------------------------------------------------------------------------------------------


def test_two_hospitals_do_not_share_a_folder(table: Table) -> None:
    log = table.folder / "log"
    table.change_site(TWO, state_folder=table.sites[ONE].state_folder, log_file=str(log))
    assert code(table.invite(TWO)) == "FAILED"
    assert f"is that of {ONE}" in log.read_text()
    assert code(table.invite(ONE)) == ""


@pytest.mark.parametrize("ended", [True, False])
def test_what_a_finished_run_left_is_cleared_away_by_the_next_message_and_nothing_else_is(
    bare: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    other = beside(bare, tmp_path / "other", monkeypatch)
    other.start(1)
    folder = Path(str(other.sites[ONE].state_folder))
    if ended:  # killed after the abort was on record, and before anything was dropped
        with Database(folder, hospital=ONE, population="patients") as database:
            Store(database).abort(other.plan.sha256, 1)
    bare.contexts[ONE].state = other.contexts[ONE].state  # an old node of Flower's, say
    slots = set(other.state(ONE))
    bare.invite(ONE)
    left = {slot for slot in bare.state(ONE) if slot.startswith(other.plan.sha256[:12])}
    dropped = {f"{other.plan.sha256[:12]}.{name}" for name in ("machine", "vector-key")}
    assert left == (slots - dropped if ended else slots)
    assert [path.name for path in (folder / "work").iterdir()] == (
        [] if ended else [f"{other.plan.sha256[:12]}.update"]
    )


def test_without_privacy_a_session_that_was_given_up_is_repeated(bare: Table) -> None:
    started = bare.start(1)
    started.mask()
    aborts = started.abort()
    np.testing.assert_allclose(bare.run(2, aborts=aborts), bare.expected(), atol=1e-7)
    # And not once more: session 2 has a sum.
    assert bare.start(3, aborts=aborts).refused == dict.fromkeys(NAMES, "SESSION_REFUSED")


@pytest.mark.parametrize("spoil", ["too few", "doubled", "another session", "another member", "forged"])
def test_a_session_is_given_up_by_a_threshold_of_its_members_or_not_at_all(bare: Table, spoil: str) -> None:
    started = bare.start(1)
    started.mask()
    first, second, _ = started.abort()
    aborts = {
        "too few": [first],
        "doubled": [first, first],
        "another session": [first, dataclasses.replace(second, session=2)],
        "another member": [first, dataclasses.replace(first, member=TWO)],
        "forged": [first, dataclasses.replace(second, signature=b"\0" * 3373)],
    }[spoil]
    assert bare.start(2, aborts=aborts).refused == dict.fromkeys(NAMES, "SESSION_REFUSED")
    bare.join()
    assert bare.start(3, aborts=[first, second]).refused == {}


def test_a_session_nobody_masked_in_need_not_be_given_up(bare: Table) -> None:
    bare.start(1)
    np.testing.assert_allclose(bare.run(2), bare.expected(), atol=1e-7)


def test_with_privacy_a_round_is_tried_again_without_ado(table: Table) -> None:
    table.start(1).mask()
    np.testing.assert_allclose(table.run(2, attempt=1), table.expected(), atol=1e-7)


def test_who_gave_a_session_up_answers_none_of_its_steps(bare: Table) -> None:
    started = bare.start(1)
    started.mask()
    request = started.coordinator.confirm_request()
    assert len(started.abort(ONE)) == 1
    assert code(bare.ask(ONE, CONFIRM, request)) == "SESSION_REFUSED"
    assert bare.files(ONE) == KEPT
    assert {slot.split(".")[1] for slot in bare.state(ONE)} == {"advert"}
    assert len(started.abort(ONE)) == 1  # asked again, it says the same


def test_who_unmasked_gives_nothing_up(bare: Table) -> None:
    started = Session(bare, bare.opening(1))
    for step in started.steps:
        step()
    assert started.abort() == []
    assert started.refused == dict.fromkeys(NAMES, "SESSION_REFUSED")


def test_giving_an_older_session_up_leaves_the_newest_alone(table: Table) -> None:
    first = table.start(1)
    second = table.start(2)
    assert len(first.abort()) == 3
    second.mask()
    second.confirm()
    np.testing.assert_allclose(second.unmask(), table.expected(), atol=1e-7)


# --- without torch ----------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import json, sys
from flwr.app import ConfigRecord, Context, RecordDict
from fedslm.flower.compat import become_task
from clients.app import app
from flwr.app import Message
from fedslm.flower.records import SECAGG, CONFIG, put_secagg, secagg_bytes

become_task()
asked = json.load(sys.stdin)
state = RecordDict({"fedslm-session": ConfigRecord({k: bytes.fromhex(v) for k, v in asked["state"].items()})})
node = {"site-file": asked["site"], "simulation": "true"}
context = Context(run_id=1, node_id=1, node_config=node, state=state, run_config={})
config = ConfigRecord({k: bytes.fromhex(v) for k, v in asked["config"].items()})
content = RecordDict({CONFIG: config, SECAGG: put_secagg(bytes.fromhex(asked["data"]))})
reply = app(Message(content, 1, asked["kind"]), context)
heavy = sorted({"torch", "transformers", "peft", "opacus", "hydra", "scipy"} & set(sys.modules))
slots = {k: v.hex() for record in state.config_records.values() for k, v in record.items()}
print(json.dumps({"reply": secagg_bytes(reply).hex(), "state": slots, "heavy": heavy}))
"""


def test_the_exchanges_after_the_training_run_in_fresh_processes_without_torch(table: Table) -> None:
    started = Session(table, table.opening(1))
    ask = table.ask

    def elsewhere(name: str, kind: str, data: bytes) -> Message:
        if name != ONE:
            return ask(name, kind, data)
        config = table.message(kind).content.config_records[CONFIG]
        asked = {
            "state": {slot: piece.hex() for slot, piece in table.state(ONE).items()},
            "site": str(table.contexts[ONE].node_config["site-file"]),
            "config": {key: value.hex() for key, value in config.items() if isinstance(value, bytes)},
            "data": data.hex(),
            "kind": kind,
        }
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH], input=json.dumps(asked), capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["heavy"] == []
        slots = {slot: bytes.fromhex(piece) for slot, piece in found["state"].items()}
        table.contexts[ONE].state = RecordDict({"fedslm-session": ConfigRecord(slots)})
        return Message(RecordDict({SECAGG: put_secagg(bytes.fromhex(found["reply"]))}), reply_to=table.message(kind))

    table.ask = elsewhere  # type: ignore[method-assign]
    for step in started.steps:
        summed = step()
    assert started.refused == {}
    np.testing.assert_allclose(summed, table.expected(), atol=1e-7)
