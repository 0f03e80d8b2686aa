"""`ClearGrid`: a Flower `Grid` that runs a round's exchange and hands the strategy whole adapters with public weights.

It is the unmasked sibling of secure aggregation: the same place, the same interface, so that the round loop and the
strategies never know which of the two they stand on. In the clear the coordinator can read every single update; the run
record says so.

Flower's own `send_and_receive` sleeps three seconds between polls and its error replies do not name the node, so the
exchange here pushes, keeps a map from message to node, and pulls until everybody answered or the deadline passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedslm.errors import ConfigError, ModelError, TooFewHospitalsError
from fedslm.flower.compat import Run
from fedslm.flower.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
    JOIN,
    UPDATE,
    NamedArrays,
    content_bytes,
    error_name,
    from_array_record,
    plan_config,
    to_array_record,
)
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer
from server.strategies import WEIGHT

MISSING = "NO_ANSWER"
REFUSED = "ADAPTER_REFUSED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One node's reply in an exchange; `reply` is None where the deadline passed without one."""

    node_id: int
    reply: Message | None
    seconds: float


class ClearGrid(Grid):
    """Wraps any Flower grid.

    Guarantees:
      Replies come back in the plan's order of hospitals, whoever answered first, so that a float sum is reproducible.
      `survivors` then names who is in the mean.
      A reply with other names, shapes, types or a value that is not finite is dropped, never averaged.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        plan: Plan,
        frozen: NamedArrays,
        announcer: Announcer,
        poll_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wraps `grid`; nothing is sent before `join`.

        Args:
          frozen: the adapter's frozen arrays, sent beside the trained ones.
          poll_s: pause between two looks for replies.
        """
        self._grid = grid
        self._plan = plan
        self._frozen = to_array_record(frozen)
        self._announcer = announcer
        self._poll_s = poll_s
        self._clock = clock
        self._hospital_of: dict[int, str] = {}
        self.survivors: tuple[str, ...] = ()

    def join(self, *, timeout_s: float) -> None:
        """Asks every node who it is and which plan it approved, until all the plan's hospitals are in or time is up.

        Nodes may come online at any time. One that goes away frees its name and is asked again when it is back: a
        hospital may have corrected its site file. A node that is slow or not in the plan holds nobody up.

        Raises:
          TooFewHospitalsError: fewer than `min_cohort` joined.
        """
        deadline = self._clock() + timeout_s
        asked: list[int] = []
        waiting: dict[str, int] = {}
        while len(self._hospital_of) < len(self._plan.hospitals) and (left_s := deadline - self._clock()) > 0:
            online = list(self._grid.get_node_ids())
            self._hospital_of = {node: name for node, name in self._hospital_of.items() if node in online}
            new = [node for node in online if node not in asked]
            waiting |= self._push(self._invitations(new, ttl_s=left_s))
            asked = online
            replies = self._pull(waiting)
            for node_id, reply in replies:
                self._admit(node_id, reply)
            if not waiting and self._nobody_else_comes(len(asked)):
                break
            time.sleep(0 if replies else self._poll_s)
        for node_id in waiting.values():
            self._admit(node_id, None)
        self._require(len(self._hospital_of), "joined")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Runs one round's exchange.

        Returns:
          One reply a hospital that answered well: the whole trained adapter and the hospital's public weight.
        Raises:
          TooFewHospitalsError: fewer than `min_cohort` did.
        """
        sent, timeout_s = list(messages), timeout or self._plan.deadline_s
        for message in sent:
            message.content[FROZEN] = self._frozen
            # Flower's default is 12 hours: a hospital that comes back later must not train for a round that is over.
            message.metadata.ttl = timeout_s
        by_hospital: dict[str, Message] = {}
        size = content_bytes(sent[0].content) if sent else 0
        for answer in self._exchange(sent, timeout_s):
            whole = self._whole(answer, sent[0], bytes_down=size)
            if whole is not None:
                by_hospital[self._hospital_of[answer.node_id]] = whole
        self._require(len(by_hospital), "answered")
        self.survivors = tuple(name for name in self._plan.names if name in by_hospital)
        return [by_hospital[name] for name in self.survivors]

    def _invitations(self, nodes: list[int], *, ttl_s: float) -> list[Message]:
        content = RecordDict({CONFIG: plan_config(self._plan)})
        return [Message(content, node, JOIN, ttl=ttl_s) for node in nodes]

    def _admit(self, node_id: int, reply: Message | None) -> None:
        """Enters a node under the name it gives, if the plan has that name, it is free, and the plans are the same."""
        code = MISSING if reply is None else _error(reply) or self._claim(node_id, reply)
        if code:
            self._announcer.emit("hospital_refused", hospital=f"node {node_id}", code=code)

    def _claim(self, node_id: int, reply: Message) -> str:
        """Enters the node and returns nothing, or returns why not."""
        config = reply.content.config_records.get(CONFIG, ConfigRecord())
        name, sha256 = str(config.get("hospital")), config.get("plan-sha256")
        if name not in self._plan.names or sha256 != self._plan.sha256:
            return "NOT_IN_PLAN"
        if name in self._hospital_of.values():
            return "" if self._hospital_of.get(node_id) == name else "NAME_TAKEN"
        self._hospital_of[node_id] = name
        self._announcer.emit("hospital_joined", hospital=name)
        return ""

    def _nobody_else_comes(self, nodes: int) -> bool:
        # A simulation has the plan's nodes and no others; waiting for one that refused would be waiting for nothing.
        return bool(getattr(self._grid, "closed", False)) and nodes >= len(self._plan.hospitals)

    def _exchange(self, messages: list[Message], timeout_s: float) -> Iterator[Answer]:
        """Yields one answer a message, replies as they arrive, missing ones at the deadline."""
        waiting = self._push(messages)
        for node_id in {message.metadata.dst_node_id for message in messages} - set(waiting.values()):
            yield Answer(node_id=node_id, reply=None, seconds=0.0)
        started = self._clock()
        while waiting and self._clock() - started < timeout_s:
            replies = self._pull(waiting)
            for node_id, reply in replies:
                seconds = self._work_s.get(reply.metadata.reply_to_message_id, self._clock() - started)
                yield Answer(node_id=node_id, reply=reply, seconds=seconds)
            time.sleep(0 if replies or not waiting else self._poll_s)
        for node_id in waiting.values():
            yield Answer(node_id=node_id, reply=None, seconds=self._clock() - started)

    def _push(self, messages: list[Message]) -> dict[str, int]:
        # The grid fills in each message's id while it pushes; an error reply names only that, not its node.
        pushed = set(self._grid.push_messages(messages)) if messages else set()
        destinations = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        return {identity: node for identity, node in destinations.items() if identity in pushed}

    def _pull(self, waiting: dict[str, int]) -> list[tuple[int, Message]]:
        """Takes the replies that have arrived, each with its node, and crosses them off `waiting`."""
        replies = list(self._grid.pull_messages(list(waiting))) if waiting else []
        return [
            (waiting.pop(identity), reply)
            for reply in replies
            if (identity := reply.metadata.reply_to_message_id) in waiting
        ]

    @property
    def _work_s(self) -> dict[str, float]:
        # On one machine hospitals wait for each other; an in-process grid knows how long each one worked itself.
        return dict(getattr(self._grid, "work_s", {}))

    def _whole(self, answer: Answer, request: Message, *, bytes_down: int) -> Message | None:
        """Turns an update into the adapter a strategy expects, or reports why the hospital dropped out."""
        hospital, number = self._hospital_of[answer.node_id], request.content.config_records[CONFIG]["server-round"]
        reply = answer.reply
        if reply is None or reply.has_error():
            code = MISSING if reply is None else _error(reply)
            self._announcer.emit("hospital_dropped", round=number, hospital=hospital, code=code)
            return None
        bytes_up = content_bytes(reply.content)
        try:
            adapter = _applied(request, reply)
        except (ModelError, ConfigError):
            self._announcer.emit("hospital_dropped", round=number, hospital=hospital, code=REFUSED)
            return None
        weight = MetricRecord({WEIGHT: self._plan.hospital(hospital).weight})
        reply.content = RecordDict({ARRAYS: to_array_record(adapter), "metrics": weight})
        sizes = {"bytes_up": bytes_up, "bytes_down": bytes_down}
        self._announcer.emit("hospital_trained", round=number, hospital=hospital, seconds=answer.seconds, **sizes)
        return reply

    def _require(self, count: int, verb: str) -> None:
        if count < self._plan.min_cohort:
            raise TooFewHospitalsError(
                f"{count} of {len(self._plan.hospitals)} hospitals {verb}, the plan needs {self._plan.min_cohort}; "
                "see who dropped out above, and their own logs for why."
            )

    def get_node_ids(self) -> list[int]:
        """The nodes that joined, in the plan's order of hospitals."""
        return sorted(self._hospital_of, key=lambda node: self._plan.names.index(self._hospital_of[node]))

    def set_run(self, run: Run) -> None:
        """Passed on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Passed on."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Makes a message as Flower 1.41 does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Passed on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Passed on."""
        return self._grid.pull_messages(message_ids)


def _error(reply: Message) -> str:
    return error_name(reply) if reply.has_error() else ""


def _applied(request: Message, reply: Message) -> dict[str, np.ndarray[Any, Any]]:
    """Global adapter plus update, in float32.

    Raises:
      ModelError: names, shapes or types differ, or a value is not finite.
    """
    trained = from_array_record(request.content.array_records[ARRAYS])
    update = from_array_record(reply.content.array_records.get(UPDATE, to_array_record({})))
    shapes = {name: array.shape for name, array in trained.items()}
    if {name: array.shape for name, array in update.items()} != shapes:
        raise ModelError("An update has other names or shapes than the adapter; the hospital's model or plan differs.")
    # In the order they were sent: FedAvgM pairs old and new arrays by position.
    return {name: trained[name] + update[name] for name in request.content.array_records[ARRAYS]}
