"""A ClientApp without a model, grids with faults, and an observer that remembers: for tests of the exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedslm.flower.records import ErrorCode, error_reply, from_array_record, join_reply, read_plan, update_reply
from fedslm.reporting.events import Event
from simulations.local_grid import LocalGrid

Arrays = dict[str, np.ndarray[Any, Any]]
Behaviour = Callable[[Message], Message]


class Recorder:
    """Remembers every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: str, *fields: str) -> list[Any]:
        """One value, or tuple of values, an event of that kind."""
        rows = [tuple(event.fields[field] for field in fields) for event in self.events if event.kind == kind]
        return [row[0] for row in rows] if len(fields) == 1 else rows


class Clock:
    """Moves on by `step_s` whenever somebody looks."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.now, self._step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


class Counting:
    """Counts sessions in memory."""

    def __init__(self, started: int = 0) -> None:
        self.started = started

    def start(self) -> int:
        self.started += 1
        return self.started


def answers(update: Callable[[Arrays], Arrays]) -> Behaviour:
    """A hospital that answers with an update made from the global adapter."""
    return lambda message: update_reply(message, update(from_array_record(message.content.array_records["arrays"])))


def adds(value: float) -> Behaviour:
    """A hospital whose update is `value` everywhere."""
    return answers(lambda trained: {name: np.full_like(array, value) for name, array in trained.items()})


def refuses(code: ErrorCode) -> Behaviour:
    """A hospital that answers with an error."""
    return lambda message: error_reply(message, code, "0" * 8)


def hospital_app(
    behaviours: Mapping[str, Behaviour] | None = None, *, joins: Mapping[str, Behaviour] | None = None
) -> ClientApp:
    """Hospitals by the name in their node's configuration; they approve any plan and add nothing, unless told to."""
    app = ClientApp()
    on_train, on_join = dict(behaviours or {}), dict(joins or {})

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        hospital = str(context.node_config["hospital"])
        if hospital in on_join:
            return on_join[hospital](message)
        return join_reply(message, hospital=hospital, plan=read_plan(message))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return on_train.get(str(context.node_config["hospital"]), adds(0.0))(message)

    return app


class BackwardsGrid(LocalGrid):
    """Its last node answers first."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(reversed(list(message_ids)))


class GrowingGrid(LocalGrid):
    """Each look at the nodes takes the next of `online`, and then stays with the last."""

    closed = False
    online: list[list[int]]

    def get_node_ids(self) -> list[int]:
        return self.online.pop(0) if len(self.online) > 1 else self.online[0]


class LosingGrid(LocalGrid):
    """Cannot push a training message to the node `lost`, as the SuperLink sometimes cannot."""

    lost: int

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return super().push_messages(
            [m for m in messages if m.metadata.message_type != "train" or m.metadata.dst_node_id != self.lost]
        )
