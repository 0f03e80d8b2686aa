"""The content of every message between server and hospital, and nothing else: the closed list of what travels.

server -> hospital: the plan's bytes, the round, the trained and the frozen arrays of the global adapter (all public).
hospital -> server: its name and its plan's hash when it joins; its update's arrays after training; or an error code with
an incident number. No counts, no losses, no text.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedslm.errors import ConfigError, ModelError
from fedslm.governance.plan import Plan

JOIN = "query.join"
TRAIN = "train"

ARRAYS = "arrays"
FROZEN = "frozen"
UPDATE = "update"
CONFIG = "config"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One round's work, as a hospital reads it.

    Attributes:
      round: 1-based.
      trained: the global adapter's trained arrays, float32 by name.
      frozen: its frozen arrays.
    """

    plan: Plan
    round: int
    trained: dict[str, np.ndarray[Any, Any]]
    frozen: dict[str, np.ndarray[Any, Any]]


def to_array_record(arrays: NamedArrays) -> ArrayRecord:
    """Named float32 arrays as a Flower record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array, dtype=np.float32)) for name, array in arrays.items()})


def from_array_record(record: ArrayRecord) -> dict[str, np.ndarray[Any, Any]]:
    """Reads named arrays strictly.

    Raises:
      ModelError: an array cannot be decoded, is not float32 or not finite; the values are not shown.
    """
    arrays = {name: _checked(name, _decoded(name, array)) for name, array in record.items()}
    return dict(sorted(arrays.items()))


def _decoded(name: str, array: Array) -> np.ndarray[Any, Any]:
    try:
        return array.numpy()
    except Exception:  # the bytes come from the other side, and NumPy's reader fails in many ways
        raise ModelError(f"The array '{name}' cannot be decoded; only NumPy's format is exchanged.") from None


def _checked(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype != np.float32:
        raise ModelError(f"The array '{name}' has dtype {array.dtype}; only float32 is exchanged.")
    if not np.isfinite(array).all():
        raise ModelError(
            f"The array '{name}' is not finite; lower the learning rate and resume from an earlier checkpoint."
        )
    return array


def plan_config(plan: Plan) -> ConfigRecord:
    """The config record of every message from the server."""
    return ConfigRecord({"plan": plan.to_bytes()})


def read_plan(message: Message) -> Plan:
    """The plan a message carries.

    Raises:
      ConfigError: it carries none, or one that cannot be read strictly.
    """
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    data = config.get("plan")
    if not isinstance(data, bytes):
        raise ConfigError("The message carries no plan; it does not come from a FedSLM server of this version.")
    return Plan.from_bytes(data)


def read_train_request(message: Message) -> TrainRequest:
    """Reads a training message.

    Raises:
      ConfigError: plan or round missing. ModelError: arrays that are not float32 or not finite.
    """
    content = message.content
    number = content.config_records.get(CONFIG, ConfigRecord()).get("server-round")
    plan = read_plan(message)
    if not isinstance(number, int) or not 1 <= number <= plan.training.rounds:
        raise ConfigError(f"The message is for round {number!r}; the plan has rounds 1 to {plan.training.rounds}.")
    return TrainRequest(
        plan=plan,
        round=number,
        trained=from_array_record(content.array_records.get(ARRAYS, ArrayRecord())),
        frozen=from_array_record(content.array_records.get(FROZEN, ArrayRecord())),
    )


def join_reply(request: Message, *, hospital: str, plan: Plan) -> Message:
    """A hospital's answer to `join`: who it is and which plan it approved."""
    config = ConfigRecord({"hospital": hospital, "plan-sha256": plan.sha256})
    return Message(RecordDict({CONFIG: config}), reply_to=request)


def update_reply(request: Message, update: NamedArrays) -> Message:
    """A hospital's answer to `train`: its update and nothing else."""
    return Message(RecordDict({UPDATE: to_array_record(update)}), reply_to=request)


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
