"""What a hospital answers is on a closed list: no text, no count, no metric, whatever happens inside."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from clients.app import build_client_app
from clients.guard import EgressError, approve, close_egress, redact
from clients.site import RecordSource
from fedslm.errors import BudgetExceededError, ConfigError, DataError, ModelError, PrivacyError
from fedslm.flower.records import CONFIG, JOIN, UPDATE, ErrorCode, error_name, read_plan
from tests.clients.conftest import Ward, node, train_message

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
        (EgressError(CANARY), ErrorCode.FAILED),
        (ValueError(CANARY), ErrorCode.FAILED),
        (KeyError(CANARY), ErrorCode.FAILED),
        (MemoryError(CANARY), ErrorCode.FAILED),
        (UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY), ErrorCode.FAILED),
        (type(CANARY, (RuntimeError,), {})(CANARY), ErrorCode.FAILED),
        (ValueError(f"{CANARY} \ud800"), ErrorCode.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_exception_becomes_a_code_and_its_text_stays(
    ward: Ward, tmp_path: Path, error: Exception, code: ErrorCode, capfd: pytest.CaptureFixture[str]
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
