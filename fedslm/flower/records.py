"""The content of every message between server and hospital, and nothing else: the closed list of what travels.

server -> hospital: the plan's bytes, the round, the trained and the frozen arrays of the global adapter (all public).
hospital -> server: its name and its plan's hash when it joins; its update's arrays after training; or an error code with
an incident number. No counts, no losses, no text.

Under a masked plan every request also carries the plan's signature and the roster's hash, and the messages of secure
aggregation travel as opaque bytes, one `ArrayRecord` each: Flower cuts arrays into chunks, configuration values it does
not. No update travels then; a hospital sends keys, ciphertext, a masked vector, and its signature on how long its ledger is.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedslm.encoding import arrays_sha256, canonical_bytes
from fedslm.errors import (
    AdvertError,
    BoundError,
    ConfigError,
    ConsistencyError,
    DecodeError,
    LedgerError,
    ModelError,
    ProtocolError,
    RangeError,
    RosterError,
    SealError,
    SessionError,
    SignatureError,
)
from fedslm.governance.plan import Plan

JOIN = "query.join"
TRAIN = "train"
MASK = "query.mask"
CONFIRM = "query.confirm"
UNMASK = "query.unmask"
ABORT = "query.abort"

ARRAYS = "arrays"
FROZEN = "frozen"
UPDATE = "update"
SCORES = "scores"
CONFIG = "config"
SECAGG = "secagg"

_SECAGG_NAME = "message"
_SECAGG_STYPE = "fedslm.secagg.v1"

NamedArrays = Mapping[str, np.ndarray[Any, Any]]


class ErrorCode(enum.IntEnum):
    """Why a hospital did not answer with an update. A fixed list: an exception's text could quote a patient.

    Flower's own codes are below 100.
    """

    FAILED = 100
    PLAN_REFUSED = 101
    DATA_UNUSABLE = 102
    MODEL_UNAVAILABLE = 103
    ADAPTER_REFUSED = 104
    BUDGET_EXHAUSTED = 105
    NOT_FINITE = 106
    ROSTER_REFUSED = 107
    ADVERT_REFUSED = 108
    BOUND_BROKEN = 109
    SESSION_REFUSED = 110
    SIGNATURE_REFUSED = 111
    CIPHERTEXT_REFUSED = 112
    INCONSISTENT = 113
    MALFORMED = 114
    OUT_OF_RANGE = 115
    LEDGER_REFUSED = 116


_PROTOCOL_CODES: dict[type[ProtocolError], ErrorCode] = {
    RosterError: ErrorCode.ROSTER_REFUSED,
    AdvertError: ErrorCode.ADVERT_REFUSED,
    BoundError: ErrorCode.BOUND_BROKEN,
    SessionError: ErrorCode.SESSION_REFUSED,
    SignatureError: ErrorCode.SIGNATURE_REFUSED,
    SealError: ErrorCode.CIPHERTEXT_REFUSED,
    ConsistencyError: ErrorCode.INCONSISTENT,
    DecodeError: ErrorCode.MALFORMED,
    RangeError: ErrorCode.OUT_OF_RANGE,
}


def protocol_code(error: ProtocolError | LedgerError) -> ErrorCode:
    """The code of a refused message of secure aggregation, or of the ledger that one tells of.

    A share that fits no commitment is an inconsistency.
    """
    if isinstance(error, LedgerError):
        return ErrorCode.LEDGER_REFUSED
    return _PROTOCOL_CODES.get(type(error), ErrorCode.INCONSISTENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One round's work, as a hospital reads it.

    Attributes:
      round: 1-based.
      attempt: which try at the round, from 0; only a seeded simulation draws by it.
      trained: the global adapter's trained arrays, float32 by name.
      frozen: its frozen arrays.
    """

    plan: Plan
    round: int
    trained: dict[str, np.ndarray[Any, Any]]
    frozen: dict[str, np.ndarray[Any, Any]]
    attempt: int = 0

    def require_planned_adapter(self) -> None:
        """Accepts the frozen half only as the plan pins it, and in round 1 the other half too.

        Another frozen half could be crafted to make an update say more.

        Raises:
          ModelError: it is another.
        """
        planned = self.plan.adapter
        if arrays_sha256(self.frozen) != planned.frozen_sha256:
            raise ModelError("The frozen half of the adapter is not the one in the plan; the coordinator sent another.")
        if self.round == 1 and arrays_sha256({**self.frozen, **self.trained}) != planned.initial_sha256:
            raise ModelError("The initial adapter is not the one in the plan; the coordinator sent another.")


def to_array_record(arrays: NamedArrays) -> ArrayRecord:
    """Named float32 arrays as a Flower record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array, dtype=np.float32)) for name, array in arrays.items()})


def as_float32(record: ArrayRecord) -> ArrayRecord:
    """The same record where all is float32; else a copy with float64 rounded: Flower's adaptive strategies widen arrays.

    Raises:
      ModelError: an array cannot be decoded.
    """
    if all(array.dtype != "float64" for array in record.values()):
        return record
    return to_array_record({name: _decoded(name, array) for name, array in record.items()})


def from_array_record(record: ArrayRecord) -> dict[str, np.ndarray[Any, Any]]:
    """Reads named arrays strictly.

    Raises:
      ModelError: an array cannot be decoded, is not float32 or not finite; the values are not shown.
    """
    arrays = {name: _checked(name, _decoded(name, array)) for name, array in record.items()}
    return dict(sorted(arrays.items()))


def _decoded(name: str, array: Array) -> np.ndarray[Any, Any]:
    try:
        found: object = array.numpy()
    except Exception:  # the bytes come from the other side, and NumPy's reader fails in many ways
        found = None
    if not isinstance(found, np.ndarray):  # NumPy opens an archive too, and hands that back
        raise ModelError(f"The array '{name}' cannot be decoded; only NumPy's format is exchanged.")
    return found


def _checked(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype != np.float32:
        raise ModelError(f"The array '{name}' has dtype {array.dtype}; only float32 is exchanged.")
    if not np.isfinite(array).all():
        raise ModelError(
            f"The array '{name}' is not finite; lower the learning rate and resume from an earlier checkpoint."
        )
    return array


def to_vector(arrays: NamedArrays) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One float32 vector of all values, arrays in the order of their sorted names, each row by row.

    Both ends of secure aggregation use this order; `from_vector` is its inverse.
    """
    parts = [np.asarray(arrays[name], dtype=np.float32).ravel() for name in sorted(arrays)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def from_vector(vector: np.ndarray[Any, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    """Cuts a vector into arrays of the given shapes, as views; keeps the order of `shapes`.

    Raises:
      ValueError: the shapes need another number of values.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if vector.size != sum(sizes.values()):
        raise ValueError(f"The shapes need {sum(sizes.values())} values, the vector has {vector.size}.")
    starts, position = {}, 0
    for name in sorted(shapes):
        starts[name], position = position, position + sizes[name]
    return {name: vector[starts[name] : starts[name] + sizes[name]].reshape(shape) for name, shape in shapes.items()}


def plan_config(plan: Plan, *, signature: bytes = b"", roster_sha256: bytes = b"") -> ConfigRecord:
    """The config record of every message from the server.

    Args:
      signature: the coordinator's over a masked plan; none for a plan in the clear.
      roster_sha256: 32 bytes; of the roster that the signature's key stands in.
    """
    if not plan.masked:
        return ConfigRecord({"plan": plan.to_bytes()})
    return ConfigRecord({"plan": plan.to_bytes(), "plan-signature": signature, "roster-sha256": roster_sha256})


def put_secagg(data: bytes) -> ArrayRecord:
    """A message of secure aggregation as the record that goes under the name `SECAGG`."""
    return ArrayRecord({_SECAGG_NAME: Array("uint8", (len(data),), _SECAGG_STYPE, data)})


def secagg_bytes(message: Message) -> bytes:
    """The bytes of the message of secure aggregation that a Flower message carries.

    Raises:
      DecodeError: it carries an error, none, or one in another form.
    """
    record = message.content.array_records.get(SECAGG) if message.has_content() else None
    if record is None or list(record) != [_SECAGG_NAME]:
        raise DecodeError("The message carries no message of secure aggregation.")
    array = record[_SECAGG_NAME]
    if (array.dtype, array.stype, tuple(array.shape)) != ("uint8", _SECAGG_STYPE, (len(array.data),)):
        raise DecodeError("The message of secure aggregation is not in the form of this version.")
    return array.data


def take_secagg(message: Message) -> bytes:
    """`secagg_bytes`, and empties the message: Flower's records refer to themselves, so a large one would linger.

    Raises:
      DecodeError: see `secagg_bytes`.
    """
    data = secagg_bytes(message)
    message.content.array_records[SECAGG][_SECAGG_NAME].data = b""
    return data


def config_sha256(message: Message) -> bytes:
    """SHA-256 over every key and typed value of a message's config record: 32 bytes, the same at both ends.

    It enters the context of a session, so that two hospitals which were told different things never complete one.
    """
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    return hashlib.sha256(canonical_bytes({key: _typed(value) for key, value in config.items()})).digest()


def adapter_sha256(trained: NamedArrays, frozen: NamedArrays) -> bytes:
    """SHA-256 over the whole incoming adapter, both halves: 32 bytes; enters the context of a session."""
    return bytes.fromhex(arrays_sha256({**frozen, **trained}))


def _typed(value: object) -> list[Any]:
    """A value beside its type: 1, 1.0, true and "1" are four values. Floats in hexadecimal, which is exact."""
    if isinstance(value, list):
        return ["list", [_typed(item) for item in value]]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    return ["float", value.hex()] if isinstance(value, float) else [type(value).__name__, value]


def read_plan_signature(message: Message) -> tuple[bytes, str]:
    """The coordinator's signature over a masked plan, and the SHA-256 of the roster it refers to as 64 hex digits.

    Raises:
      ConfigError: one of the two is missing or of another kind.
    """
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    signature, roster = config.get("plan-signature"), config.get("roster-sha256")
    if not isinstance(signature, bytes) or not isinstance(roster, bytes) or len(roster) != hashlib.sha256().digest_size:
        raise ConfigError("The message carries no signature of its plan; it does not come from this consortium.")
    return signature, roster.hex()


def read_plan(message: Message) -> Plan:
    """The plan a message carries.

    Raises:
      ConfigError: it carries none, or one that cannot be read strictly.
    """
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    data = config.get("plan")
    if not isinstance(data, bytes):
        raise ConfigError("The message carries no plan; it does not come from a FedSLM server of this version.")
    return _parsed(data)


@functools.lru_cache(maxsize=4)
def _parsed(data: bytes) -> Plan:
    # A hospital asks for a message's plan once for everything that must agree with it; parsing is slower than all of that.
    return Plan.from_bytes(data)


def read_train_request(message: Message) -> TrainRequest:
    """Reads a training message.

    Raises:
      ConfigError: plan or round missing, or an attempt that is none. ModelError: arrays that are not float32 or not
        finite.
    """
    content = message.content
    config = content.config_records.get(CONFIG, ConfigRecord())
    number, attempt = config.get("server-round"), config.get("attempt", 0)
    plan = read_plan(message)
    if not isinstance(attempt, int) or attempt < 0:
        raise ConfigError(f"The message is for attempt {attempt!r}; attempts count from 0.")
    if not isinstance(number, int) or not 1 <= number <= plan.training.rounds:
        raise ConfigError(f"The message is for round {number!r}; the plan has rounds 1 to {plan.training.rounds}.")
    return TrainRequest(
        plan=plan,
        round=number,
        trained=from_array_record(content.array_records.get(ARRAYS, ArrayRecord())),
        frozen=from_array_record(content.array_records.get(FROZEN, ArrayRecord())),
        attempt=attempt,
    )


def join_reply(request: Message, *, hospital: str, plan: Plan, advert: bytes = b"") -> Message:
    """A hospital's answer to `join`: who it is and which plan it approved.

    Args:
      advert: under a masked plan a `JoinReply`, encoded: its advert and what it knows of others' ledgers.
    """
    content = RecordDict({CONFIG: ConfigRecord({"hospital": hospital, "plan-sha256": plan.sha256})})
    if advert:
        content[SECAGG] = put_secagg(advert)
    return Message(content, reply_to=request)


def update_reply(
    request: Message, update: NamedArrays, *, scores: np.ndarray[Any, np.dtype[np.float64]] | None = None
) -> Message:
    """A hospital's answer to `train`: its update and nothing else.

    Args:
      scores: the noised scores of its held-out patients. A reply with those does not leave: what masks the update takes both.
    """
    content = RecordDict({UPDATE: to_array_record(update)})
    if scores is not None:
        content[SCORES] = to_array_record({SCORES: scores})
    return Message(content, reply_to=request)


def secagg_reply(request: Message, data: bytes) -> Message:
    """A hospital's answer within a session of secure aggregation: one message of the protocol and nothing else."""
    return Message(RecordDict({SECAGG: put_secagg(data)}), reply_to=request)


def error_reply(request: Message, code: ErrorCode, incident: str) -> Message:
    """A hospital's answer when it cannot do what was asked: a code and a number to look up in its own log."""
    return Message(Error(code=int(code), reason=f"{code.name} incident {incident}"), reply_to=request)


def error_name(reply: Message) -> str:
    """The name of a reply's error code, ours or Flower's. The reason's text is not trusted and not repeated."""
    code = reply.error.code
    return ErrorCode(code).name if code in set(ErrorCode) else f"FLOWER_{code}"


def content_bytes(content: RecordDict) -> int:
    """Bytes of the arrays and byte strings in a message (framing not counted)."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    texts = sum(
        len(value)
        for record in content.config_records.values()
        for value in record.values()
        if isinstance(value, bytes)
    )
    return arrays + texts
