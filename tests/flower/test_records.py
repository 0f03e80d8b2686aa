"""What travels is read strictly, and both ends of a session come to the same hashes and the same order of values."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedslm.encoding import arrays_sha256
from fedslm.errors import ConfigError, DecodeError, LedgerError, ModelError, ProtocolError, RollbackError
from fedslm.flower.compat import become_task
from fedslm.flower.records import (
    ErrorCode,
    TrainRequest,
    adapter_sha256,
    as_float32,
    config_sha256,
    from_array_record,
    from_vector,
    plan_config,
    protocol_code,
    put_secagg,
    read_plan,
    read_plan_signature,
    read_train_request,
    secagg_bytes,
    to_array_record,
    to_vector,
)
from fedslm.governance.plan import Plan
from tests.builders import masked_plan, toy_plan


@pytest.fixture(autouse=True)
def _task() -> None:
    become_task()


def message(**records: ArrayRecord | ConfigRecord) -> Message:
    return Message(RecordDict(dict(records)), 1, "train")


def configured(values: dict[str, object]) -> Message:
    return message(config=ConfigRecord(values))  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_a_message_of_secure_aggregation_arrives_as_it_was_sent(data: bytes) -> None:
    assert secagg_bytes(message(secagg=put_secagg(data))) == data


@pytest.mark.parametrize(
    "record",
    [
        None,
        ArrayRecord(),
        ArrayRecord({"other": Array("uint8", (1,), "fedslm.secagg.v1", b"x")}),
        ArrayRecord({"message": Array("uint8", (1,), "fedslm.secagg.v2", b"x")}),
        ArrayRecord({"message": Array("uint8", (2,), "fedslm.secagg.v1", b"x")}),
        ArrayRecord({"message": Array("uint8", (1, 1), "fedslm.secagg.v1", b"x")}),
        ArrayRecord({"message": Array("int8", (1,), "fedslm.secagg.v1", b"x")}),
        ArrayRecord({"message": Array(np.zeros(1, np.uint8))}),
        ArrayRecord(
            {
                "message": Array("uint8", (1,), "fedslm.secagg.v1", b"x"),
                "more": Array("uint8", (1,), "fedslm.secagg.v1", b"x"),
            }
        ),
    ],
    ids=["none", "empty", "name", "version", "length", "shape", "dtype", "numpy", "two"],
)
def test_a_message_in_another_form_is_refused(record: ArrayRecord | None) -> None:
    carrier = message() if record is None else message(secagg=record)
    with pytest.raises(DecodeError):
        secagg_bytes(carrier)


def test_an_error_carries_no_message() -> None:
    with pytest.raises(DecodeError):
        secagg_bytes(Message(Error(2, "x"), reply_to=message()))


def test_the_config_hash_does_not_depend_on_the_order_of_keys() -> None:
    values = {"a": 1, "b": [1.5, 2.5], "c": b"x", "d": True, "e": "text"}
    assert config_sha256(configured(values)) == config_sha256(configured(dict(reversed(values.items()))))
    assert len(config_sha256(configured(values))) == 32


@pytest.mark.parametrize(
    "other",
    [{"x": 2}, {"x": 1.0}, {"x": True}, {"x": "1"}, {"x": b"1"}, {"x": [1]}, {"y": 1}, {"x": 1, "y": 1}, {}],
    ids=str,
)
def test_the_config_hash_tells_values_and_types_apart(other: dict[str, object]) -> None:
    assert config_sha256(configured(other)) != config_sha256(configured({"x": 1}))


def test_the_config_hash_is_pinned() -> None:
    # Both ends must have the same release of it; a change needs another version of the protocol.
    values = {"server-round": 3, "rate": 0.1, "list": [True, False], "plan": b"\x00\xff", "name": "ü"}
    pinned = "c059c41a34f7b13897f3913ba84c0a6bcf0f968122de020ba2b6bda2aafe9d36"
    assert config_sha256(configured(values)).hex() == pinned


def test_the_adapter_hash_covers_both_halves() -> None:
    one, other = {"B": np.zeros(2, np.float32)}, {"A": np.ones(2, np.float32)}
    assert adapter_sha256(one, other) != adapter_sha256({**one, "B": np.ones(2, np.float32)}, other)
    assert adapter_sha256(one, other) != adapter_sha256(one, {"A": np.zeros(2, np.float32)})


def test_a_vector_is_cut_back_into_the_arrays_it_was_made_of() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    vector = to_vector(arrays)
    np.testing.assert_array_equal(vector[:6], arrays["a"].ravel())  # by sorted name, whatever the order of the dict
    found = from_vector(vector, SHAPES)
    assert list(found) == list(SHAPES)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    with pytest.raises(ValueError, match="need 10 values, the vector has 9"):
        from_vector(vector[:-1], SHAPES)


SHAPES = {"b": (4,), "a": (2, 3)}


def test_a_masked_plan_travels_with_its_signature() -> None:
    config = plan_config(masked_plan(), signature=b"s" * 10, roster_sha256=b"r" * 32)
    assert read_plan_signature(message(config=config)) == (b"s" * 10, (b"r" * 32).hex())
    assert set(plan_config(toy_plan())) == {"plan"}


@pytest.mark.parametrize(
    "values",
    [{}, {"plan-signature": b"s"}, {"roster-sha256": b"r" * 32}, {"plan-signature": b"", "roster-sha256": b"r"}],
)
def test_a_plan_without_signature_or_roster_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="no signature"):
        read_plan_signature(configured(values))


@pytest.mark.parametrize("attempt", [-1, 1.0, "1"])
def test_an_attempt_that_is_none_is_refused(attempt: object) -> None:
    config = {**plan_config(toy_plan()), "server-round": 1, "attempt": attempt}
    with pytest.raises(ConfigError, match="attempt"):
        read_train_request(message(config=ConfigRecord(config), arrays=to_array_record({})))


def archive(**arrays: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [archive(), archive(a=np.ones(2, np.float32)), b"", b"\x93NUMPY", b"PK\5\6" + bytes(18)], ids=len
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_one_array_is_refused(data: bytes, dtype: str) -> None:
    record = ArrayRecord({"a": Array(dtype, (2,), "numpy.ndarray", data)})
    with pytest.raises(ModelError, match="'a' cannot be decoded"):
        from_array_record(record)
    if dtype == "float64":
        with pytest.raises(ModelError, match="'a' cannot be decoded"):
            as_float32(record)


TRAINED = {"b": np.ones(2, np.float32)}
HALF = {"f": np.zeros(3, np.float32)}
PLANNED = toy_plan(adapter={"initial_sha256": arrays_sha256({**TRAINED, **HALF}), "frozen_sha256": arrays_sha256(HALF)})
MOVED = {name: array + 1 for name, array in TRAINED.items()}


def test_the_planned_adapter_is_accepted_and_later_its_trained_half_may_be_another() -> None:
    TrainRequest(plan=PLANNED, round=1, trained=TRAINED, frozen=HALF).require_planned_adapter()
    TrainRequest(plan=PLANNED, round=2, trained=MOVED, frozen=HALF).require_planned_adapter()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("trained", "frozen", "refused"),
    [
        (TRAINED, {"f": np.ones(3, np.float32)}, "frozen half"),
        (TRAINED, {}, "frozen half"),
        (TRAINED, {"f": HALF["f"].reshape(3, 1)}, "frozen half"),
        (MOVED, HALF, "initial adapter"),
        ({}, HALF, "initial adapter"),
    ],
)
def test_another_adapter_than_the_plans_is_refused(
    number: int, trained: dict[str, Any], frozen: dict[str, Any], refused: str
) -> None:
    request = TrainRequest(plan=PLANNED, round=number, trained=trained, frozen=frozen)
    if number > 1 and refused == "initial adapter":
        return request.require_planned_adapter()
    with pytest.raises(ModelError, match=refused):
        request.require_planned_adapter()
    return None


def test_an_attempt_is_read_and_the_first_where_none_is_named() -> None:
    config = {**plan_config(toy_plan()), "server-round": 1}
    assert read_train_request(message(config=ConfigRecord(config))).attempt == 0
    assert read_train_request(message(config=ConfigRecord({**config, "attempt": 2}))).attempt == 2


def test_every_refusal_has_a_code_of_its_own() -> None:
    codes = [protocol_code(kind("x")) for kind in ProtocolError.__subclasses__() if kind.__name__ != "ShareError"]
    assert len(set(codes)) == len(codes) == 9
    assert all(code >= ErrorCode.ROSTER_REFUSED for code in codes)


def test_a_refused_ledger_has_one_code_whatever_is_wrong_with_it() -> None:
    assert protocol_code(LedgerError("x")) == protocol_code(RollbackError("x")) == ErrorCode.LEDGER_REFUSED


def test_a_plan_is_parsed_once_for_all_that_ask_a_message_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, parsed = toy_plan(nonce="7" * 32), []
    whole = Plan.from_bytes
    monkeypatch.setattr(Plan, "from_bytes", lambda data: parsed.append(data) or whole(data))  # type: ignore[func-returns-value]
    asked = message(config=plan_config(plan))
    assert [read_plan(asked) for _ in range(5)] == [plan] * 5
    assert parsed == [plan.to_bytes()]


def test_a_plan_is_never_taken_for_another() -> None:
    plans = [toy_plan(nonce=f"{number:032x}") for number in range(20)]
    for plan in [*plans, *reversed(plans)]:
        assert read_plan(message(config=plan_config(plan))) == plan


@pytest.mark.parametrize("data", [b"", b"{}", toy_plan().to_bytes() + b" "])
def test_a_plan_that_is_refused_is_refused_every_time(data: bytes) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError):
            read_plan(configured({"plan": data}))
