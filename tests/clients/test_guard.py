"""What a hospital answers is on a closed list: no text, no count, no metric, whatever happens inside."""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from clients.app import build_client_app
from clients.guard import EGRESS, EgressError, approve, close_egress, redact
from clients.site import RecordSource
from fedslm.crypto.identity import SIGNATURE_BYTES
from fedslm.errors import (
    AdvertError,
    BoundError,
    BudgetExceededError,
    ConfigError,
    ConsistencyError,
    DataError,
    DecodeError,
    ModelError,
    PrivacyError,
    RangeError,
    RosterError,
    RunError,
    SealError,
    SessionError,
    SignatureError,
    ThresholdError,
)
from fedslm.flower.compat import become_task
from fedslm.flower.records import (
    ABORT,
    CONFIG,
    CONFIRM,
    JOIN,
    MASK,
    SCORES,
    SECAGG,
    TRAIN,
    UNMASK,
    UPDATE,
    ErrorCode,
    error_name,
    plan_config,
    put_secagg,
    read_plan,
    secagg_bytes,
)
from fedslm.secagg.messages import (
    AbortReply,
    ConfirmReply,
    JoinReply,
    MaskedReply,
    SharesReply,
    UnmaskReply,
)
from fedslm.secagg.wire import Document, decode, encode
from tests.builders import masked_plan
from tests.clients.conftest import Ward, node, train_message
from tests.clients.table import Table, plan_for

CANARY = "zq7Xylophone"
ARRAY = ArrayRecord({})


def everything_in(reply: Message) -> str:
    """All that a reply carries, as Flower would send it."""
    parts: list[Any] = [vars(reply.metadata)]
    if reply.has_error():
        parts += [reply.error.code, reply.error.reason]
    else:
        parts += [
            {name: dict(record) for name, record in kind.items()}
            for kind in (reply.content.config_records, reply.content.metric_records)
        ]
        parts += [
            [(name, key, bytes(array.data)) for key, array in record.items()]
            for name, record in reply.content.array_records.items()
        ]
    return repr(parts)


def test_a_bad_row_leaves_no_trace_but_in_the_local_log(
    ward: Ward, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, log = tmp_path / "rows.jsonl", tmp_path / "incidents.log"
    rows.write_text(json.dumps({"prompt": f"{CANARY} has fever", "completion": CANARY, "options": ["a", "b"]}) + "\n")
    columns = ward.sites[0].sources[0].columns
    broken = (RecordSource(kind="jsonl", path=str(rows), columns=columns),)
    context = node(tmp_path, replace(ward.sites[0], sources=broken, log_file=str(log)))
    reply = build_client_app()(train_message(ward.request()), context)
    assert reply.error.code == ErrorCode.DATA_UNUSABLE
    assert CANARY not in everything_in(reply)
    assert CANARY not in "".join(capfd.readouterr())
    assert CANARY not in repr(context.state)
    assert str(reply.error.reason).split()[-1] in log.read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetExceededError(CANARY), ErrorCode.BUDGET_EXHAUSTED),
        (PrivacyError(CANARY), ErrorCode.PLAN_REFUSED),
        (ConfigError(CANARY), ErrorCode.PLAN_REFUSED),
        (DataError(CANARY), ErrorCode.DATA_UNUSABLE),
        (ModelError(CANARY), ErrorCode.MODEL_UNAVAILABLE),
        (FloatingPointError(CANARY), ErrorCode.NOT_FINITE),
        (RosterError(CANARY), ErrorCode.ROSTER_REFUSED),
        (AdvertError(CANARY), ErrorCode.ADVERT_REFUSED),
        (BoundError(CANARY), ErrorCode.BOUND_BROKEN),
        (SessionError(CANARY), ErrorCode.SESSION_REFUSED),
        (SignatureError(CANARY), ErrorCode.SIGNATURE_REFUSED),
        (SealError(CANARY), ErrorCode.CIPHERTEXT_REFUSED),
        (ConsistencyError(CANARY), ErrorCode.INCONSISTENT),
        (DecodeError(CANARY), ErrorCode.MALFORMED),
        (RangeError(CANARY), ErrorCode.OUT_OF_RANGE),
        (ThresholdError(CANARY), ErrorCode.FAILED),
        (RunError(CANARY), ErrorCode.FAILED),
        (EgressError(CANARY), ErrorCode.FAILED),
        (ValueError(CANARY), ErrorCode.FAILED),
        (KeyError(CANARY), ErrorCode.FAILED),
        (MemoryError(CANARY), ErrorCode.FAILED),
        (UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY), ErrorCode.FAILED),
        (type(CANARY, (RuntimeError,), {})(CANARY), ErrorCode.FAILED),
        (ValueError(f"{CANARY} \ud800"), ErrorCode.FAILED),
        (type("PanicException", (BaseException,), {})(CANARY), ErrorCode.FAILED),  # as libraries written in Rust raise
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_becomes_a_code_and_its_text_stays(
    ward: Ward, tmp_path: Path, error: BaseException, code: ErrorCode, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "incidents.log"
    context = node(tmp_path, replace(ward.sites[0], log_file=str(log)))

    def fail(message: Message, context: Context) -> Message:
        raise error

    reply = redact(train_message(ward.request()), context, fail)
    assert reply.error.code == code
    assert error_name(reply) == code.name
    assert CANARY not in everything_in(reply)
    assert CANARY in log.read_text(errors="replace")
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_process_goes_through(ward: Ward, tmp_path: Path, ending: type[BaseException]) -> None:
    def end(message: Message, context: Context) -> Message:
        raise ending

    with pytest.raises(ending):
        redact(train_message(ward.request()), node(tmp_path, ward.sites[0]), end)


def incident(ward: Ward, tmp_path: Path, log: Path) -> None:
    """Has a hospital with this log file fail with the canary in the text."""

    def fail(message: Message, context: Context) -> Message:
        raise ValueError(CANARY)

    context = node(tmp_path, replace(ward.sites[0], log_file=str(log)))
    assert redact(train_message(ward.request()), context, fail).error.code == ErrorCode.FAILED


@pytest.mark.parametrize("mode", [None, 0o644, 0o666, 0o640, 0o200, 0o600], ids=str)
def test_the_log_is_for_this_account_only_whatever_it_was(ward: Ward, tmp_path: Path, mode: int | None) -> None:
    log = tmp_path / "incidents.log"
    if mode is not None:
        log.write_text("before\n")
        log.chmod(mode)
    umask = os.umask(0)
    try:
        incident(ward, tmp_path, log)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert log.read_text().startswith("incident" if mode is None else "before\nincident")
    assert CANARY in log.read_text()


def test_a_log_that_others_go_on_reading_is_not_written(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    log = tmp_path / "incidents.log"
    log.touch()
    log.chmod(0o644)
    node(tmp_path, ward.sites[0])  # makes the site's keys, while permissions can be set
    monkeypatch.setattr("os.fchmod", refuse)
    incident(ward, tmp_path, log)
    assert log.read_text() == ""
    assert CANARY in caplog.text


def test_a_log_that_is_no_file_is_left_alone(ward: Ward, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o644)
    mode = pipe.stat().st_mode
    incident(ward, tmp_path, pipe)  # nobody reads it, and nobody waits for a reader
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        incident(ward, tmp_path, pipe)
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)
    assert pipe.stat().st_mode == mode
    assert caplog.text.count(f"ValueError: {CANARY}") == 2


@pytest.mark.parametrize("site_file", [None, b"\xff\xfe", b"a: [", b"hospital: 1"], ids=repr)
def test_the_reply_is_not_lost_with_the_log(
    ward: Ward, tmp_path: Path, site_file: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    log = str(tmp_path / "missing" / "incidents.log")
    context = node(tmp_path, replace(ward.sites[0], allow_privacy_none=False, log_file=log))
    if site_file is not None:
        (tmp_path / "site.yaml").write_bytes(site_file)
    with caplog.at_level(logging.ERROR):
        reply = build_client_app()(train_message(ward.request()), context)
    assert reply.error.code in {ErrorCode.PLAN_REFUSED, ErrorCode.FAILED}
    assert "Traceback" in caplog.text


def answered(message: Message, **records: Any) -> Message:
    return Message(RecordDict(records), reply_to=message)


@pytest.mark.parametrize(
    ("message_type", "records"),
    [
        ("train", {}),
        ("train", {SECAGG: put_secagg(b"x")}),
        ("train", {UPDATE: ARRAY, CONFIG: ConfigRecord({})}),
        (JOIN, {CONFIG: ConfigRecord({"hospital": "h"})}),
        (JOIN, {}),
        ("train", {UPDATE: ARRAY, "counts": MetricRecord({"num-examples": 3})}),
        ("train", {UPDATE: ARRAY, "other": ARRAY}),
        ("train", {UPDATE: ARRAY, CONFIG: ConfigRecord({"loss": 0.1})}),
        ("train", {UPDATE: ARRAY, "notes": ConfigRecord({})}),
        (JOIN, {CONFIG: ConfigRecord({"hospital": "h", "plan-sha256": "0", "patients": 3})}),
        (JOIN, {CONFIG: ConfigRecord({"hospital": "h"}), UPDATE: ARRAY}),
        (JOIN, {"m": MetricRecord({})}),
        ("evaluate", {UPDATE: ARRAY}),
        ("evaluate", {CONFIG: ConfigRecord({"hospital": "h"})}),
        ("query.other", {CONFIG: ConfigRecord({"hospital": "h"})}),
        ("train", {UPDATE: ARRAY, SCORES: ARRAY}),
    ],
    ids=str,
)
def test_what_is_not_on_the_closed_list_stays(ward: Ward, message_type: str, records: dict[str, Any]) -> None:
    request = train_message(ward.request(), message_type=message_type)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(EgressError) as refused:
        close_egress(request, context, lambda message, context: answered(message, **records))
    assert "num-examples" not in str(refused.value)


def test_an_error_of_the_apps_own_making_stays(ward: Ward) -> None:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(EgressError):
        close_egress(
            train_message(ward.request()), context, lambda m, c: Message(Error(code=3, reason=CANARY), reply_to=m)
        )


@pytest.mark.parametrize(
    ("message_type", "records"),
    [
        ("train", {UPDATE: ARRAY}),
        ("train.default", {UPDATE: ARRAY}),
        (JOIN, {CONFIG: ConfigRecord({"hospital": "h", "plan-sha256": "0"})}),
    ],
)
def test_what_is_on_the_closed_list_leaves(ward: Ward, message_type: str, records: dict[str, Any]) -> None:
    request = train_message(ward.request(), message_type=message_type)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    reply = close_egress(request, context, lambda message, context: answered(message, **records))
    assert set(reply.content) == set(records)


HASH, SIGNATURE = bytes(32), bytes(SIGNATURE_BYTES)
NAMED = {"hospital": "h", "plan-sha256": "0"}
DOCUMENTS: dict[str, Document] = {
    JOIN: JoinReply(advert=b"", proofs=()),
    TRAIN: SharesReply(context=HASH, shares=b"list", ciphertexts=(b"c",), next_advert=b"advert", receipt=b"receipt"),
    MASK: MaskedReply(context=HASH, sender=1, vector=bytes(8)),
    CONFIRM: ConfirmReply(context=HASH, sender=1, signature=SIGNATURE),
    UNMASK: UnmaskReply(context=HASH, sender=1, self_shares=HASH, pair_shares=b""),
    ABORT: AbortReply(session=1, member="h", signature=SIGNATURE),
}


def leaves(message_type: str, **records: Any) -> Message:
    """Sends an answer to a request under a masked plan through the gate."""
    become_task()
    request = Message(RecordDict({CONFIG: plan_config(masked_plan())}), 1, message_type)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return close_egress(request, context, lambda message, context: answered(message, **records))


def good(message_type: str) -> dict[str, Any]:
    """What a request of that kind is answered with."""
    config = {CONFIG: ConfigRecord(NAMED)} if message_type == JOIN else {}
    return {SECAGG: put_secagg(encode(DOCUMENTS[message_type])), **config}


@pytest.mark.parametrize("message_type", DOCUMENTS)
def test_under_a_masked_plan_each_request_has_one_answer(message_type: str) -> None:
    assert leaves(message_type, **good(message_type)).content[SECAGG]
    for other in set(DOCUMENTS) - {message_type}:
        with pytest.raises(EgressError):
            leaves(message_type, **{**good(message_type), SECAGG: good(other)[SECAGG]})


@pytest.mark.parametrize("message_type", DOCUMENTS)
@pytest.mark.parametrize(
    "more",
    [
        {UPDATE: ARRAY},
        {"other": ARRAY},
        {"counts": MetricRecord({"num-examples": 3})},
        {"notes": ConfigRecord({"loss": 0.1})},
        {CONFIG: ConfigRecord({**NAMED, "patients": 3})},
        {CONFIG: ConfigRecord({"hospital": "h"})},
        {SECAGG: put_secagg(b"FSLM")},
        {SECAGG: put_secagg(b"")},
        {SECAGG: ArrayRecord({})},
        {SECAGG: ArrayRecord(dict.fromkeys(("message", "more"), put_secagg(b"x")["message"]))},
    ],
    ids=str,
)
def test_under_a_masked_plan_nothing_else_leaves(message_type: str, more: dict[str, Any]) -> None:
    with pytest.raises((EgressError, DecodeError)):
        leaves(message_type, **{**good(message_type), **more})


def test_under_a_masked_plan_an_update_never_leaves() -> None:
    for message_type in (*DOCUMENTS, "evaluate", "query.other"):
        with pytest.raises(EgressError):
            leaves(message_type, **{UPDATE: ARRAY})


def test_the_closed_list_is_what_it_is() -> None:
    """A change to the list is a change to what hospitals promise: it has to be made here as well."""
    listed = {key: (set(exit.arrays), set(exit.keys), exit.document) for key, exit in EGRESS.items()}
    assert listed == {
        (JOIN, False): (set(), set(NAMED), None),
        (TRAIN, False): ({UPDATE}, set(), None),
        (JOIN, True): ({SECAGG}, set(NAMED), JoinReply),
        (TRAIN, True): ({SECAGG}, set(), SharesReply),
        (MASK, True): ({SECAGG}, set(), MaskedReply),
        (CONFIRM, True): ({SECAGG}, set(), ConfirmReply),
        (UNMASK, True): ({SECAGG}, set(), UnmaskReply),
        (ABORT, True): ({SECAGG}, set(), AbortReply),
    }


def test_in_every_session_good_or_bad_only_what_is_listed_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(tmp_path, plan_for(), monkeypatch)
    for name in table.plan.names:
        table.change_site(name, log_file=str(tmp_path / "incidents.log"))
    table.join()
    table.run(1)
    table.updates["hospital-1"] = None  # fails with the canary in its text
    failed = table.start(2)
    failed.mask()
    failed.abort()
    assert {kind for _, kind, _ in table.replies} == set(DOCUMENTS)
    for name, kind, reply in table.replies:
        assert CANARY not in everything_in(reply)
        if reply.has_error():
            assert reply.error.reason.split()[0] == ErrorCode(reply.error.code).name
            assert len(reply.error.reason.split()) == 3
            continue
        assert set(reply.content) == ({SECAGG, CONFIG} if kind == JOIN else {SECAGG})
        data = secagg_bytes(reply)
        assert encode(decode(type(DOCUMENTS[kind]), data)) == data
        if kind == JOIN:
            named = {"hospital": name, "plan-sha256": table.plan.sha256}
            assert dict(reply.content.config_records[CONFIG]) == named
    assert CANARY in (tmp_path / "incidents.log").read_text()


def test_a_masked_plan_at_a_site_without_keys_reaches_nothing(ward: Ward, tmp_path: Path) -> None:
    context = node(tmp_path, ward.sites[0])
    plan = replace(ward.plan, secagg=masked_plan().secagg, min_cohort=3)
    for message_type in DOCUMENTS:
        message = train_message(ward.request(plan=plan), message_type=message_type)
        assert build_client_app()(message, context).error.code == ErrorCode.PLAN_REFUSED


def test_a_plan_in_the_clear_has_no_steps_of_a_session(ward: Ward, tmp_path: Path) -> None:
    context = node(tmp_path, ward.sites[0])
    for message_type in (MASK, CONFIRM, UNMASK, ABORT):
        message = train_message(ward.request(), message_type=message_type)
        assert build_client_app()(message, context).error.code == ErrorCode.PLAN_REFUSED


def test_an_unapproved_plan_reaches_nothing(ward: Ward, tmp_path: Path) -> None:
    context = node(tmp_path, replace(ward.sites[0], allow_privacy_none=False))
    reached: list[Message] = []
    with pytest.raises(ConfigError, match="allow_privacy_none"):
        approve(train_message(ward.request()), context, lambda m, c: reached.append(m) or m)
    reply = build_client_app()(train_message(ward.request()), context)
    assert reply.error.code == ErrorCode.PLAN_REFUSED
    assert reached == []


def test_a_message_without_a_plan_is_refused(ward: Ward, tmp_path: Path) -> None:
    message = train_message(ward.request())
    del message.content[CONFIG]
    assert build_client_app()(message, node(tmp_path, ward.sites[0])).error.code == ErrorCode.PLAN_REFUSED


def test_the_whole_app_answers_joining_and_training_and_no_more(ward: Ward, tmp_path: Path) -> None:
    app, context = build_client_app(), node(tmp_path, ward.sites[0])
    joined = app(train_message(ward.request(), message_type=JOIN), context)
    assert dict(joined.content.config_records[CONFIG]) == {
        "hospital": ward.sites[0].hospital,
        "plan-sha256": read_plan(train_message(ward.request())).sha256,
    }
    assert list(joined.content) == [CONFIG]
    trained = app(train_message(ward.request()), context)
    assert list(trained.content) == [UPDATE]
    assert set(trained.content.array_records[UPDATE]) == set(ward.request().trained)
    assert any(np.any(array.numpy()) for array in trained.content.array_records[UPDATE].values())
    for message_type in ("evaluate", "query.other", "train.other"):
        with pytest.raises(ValueError, match="registered"):  # Flower's own words, before any record is read
            app(train_message(ward.request(), message_type=message_type), context)
