"""`ClearGrid`: a Flower `Grid` that runs a round's exchange and hands the strategy whole adapters with public weights.

It is the unmasked sibling of `SecureGrid`: the same place, the same interface, so that the round loop and the strategies
never know which of the two they stand on. In the clear the coordinator can read every single update; the run record says
so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedslm.errors import ModelError
from fedslm.flower.grids import ForwardingGrid
from fedslm.flower.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
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
from server.exchange import Answer, Exchange
from server.membership import MISSING, Membership, require
from server.sessions import Counter, require_session
from server.strategies import WEIGHT

REFUSED = "ADAPTER_REFUSED"


class ClearGrid(ForwardingGrid):
    """Wraps any Flower grid.

    Guarantees:
      Replies come back in the plan's order of hospitals, whoever answered first, so that a float sum is reproducible.
      `survivors` then names who is in the mean.
      A reply with other names, shapes, types or a value that is not finite is dropped, never averaged; whatever a reply
      does while it is read, only its hospital drops out.
      A round's session is counted before its first message leaves.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        plan: Plan,
        frozen: NamedArrays,
        announcer: Announcer,
        counter: Counter,
        poll_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wraps `grid`; nothing is sent before `join`.

        Args:
          frozen: the adapter's frozen arrays, sent beside the trained ones.
          poll_s: pause between two looks for replies.
        """
        super().__init__(grid)
        self._exchange = Exchange(grid, poll_s=poll_s, clock=clock)
        self._plan = plan
        self._frozen = to_array_record(frozen)
        self._announcer = announcer
        self._counter = counter
        invitation = RecordDict({CONFIG: plan_config(plan)})
        self._members = Membership(
            self._exchange, plan=plan, invite=lambda node_id, name: invitation, announcer=announcer
        )
        self.survivors: tuple[str, ...] = ()

    @property
    def sessions(self) -> int:
        """Sessions started in this run so far, finished or not."""
        return self._counter.started

    def join(self, *, timeout_s: float) -> None:
        """Waits until all the plan's hospitals are in or time is up.

        Raises:
          TooFewHospitalsError: fewer than `min_cohort` joined.
        """
        self._members.join(timeout_s=timeout_s)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Runs one round's exchange, as one session.

        Returns:
          One reply a hospital that answered well: the whole trained adapter and the hospital's public weight.
        Raises:
          TooFewHospitalsError: fewer than `min_cohort` did. BudgetExceededError: the sessions paid for are used up.
        """
        sent = list(messages)
        for message in sent:
            # A config of its own: a strategy may hand in the same one every round.
            config = ConfigRecord({**message.content.config_records[CONFIG], **plan_config(self._plan)})
            message.content[FROZEN], message.content[CONFIG] = self._frozen, config
        self._start_session(sent)
        by_hospital: dict[str, Message] = {}
        size = content_bytes(sent[0].content) if sent else 0
        for answer in self._exchange.run(sent, timeout_s=timeout or self._plan.deadline_s):
            whole = self._whole(answer, sent[0], bytes_down=size)
            if whole is not None:
                by_hospital[self._members.hospital_of[answer.node_id]] = whole
        require(self._plan, len(by_hospital), "answered")
        self.survivors = tuple(name for name in self._plan.names if name in by_hospital)
        return [by_hospital[name] for name in self.survivors]

    def get_node_ids(self) -> list[int]:
        """The nodes that joined, in the plan's order of hospitals."""
        return list(self._members.node_of.values())

    def _start_session(self, sent: list[Message]) -> None:
        require_session(self._plan, self._counter)
        asked = {self._members.hospital_of[message.metadata.dst_node_id] for message in sent}
        names = [name for name in self._plan.names if name in asked]
        number = sent[0].content.config_records[CONFIG]["server-round"] if sent else 0
        session = self._counter.start()
        self._announcer.emit("session_started", round=number, session=session, attempt=0, hospitals=names)

    def _whole(self, answer: Answer, request: Message, *, bytes_down: int) -> Message | None:
        """Turns an update into the adapter a strategy expects, or reports why the hospital dropped out."""
        hospital = self._members.hospital_of[answer.node_id]
        number = request.content.config_records[CONFIG]["server-round"]
        reply = answer.reply
        if reply is None or reply.has_error():
            self._drop(number, hospital, MISSING if reply is None else error_name(reply))
            return None
        try:
            bytes_up, adapter = content_bytes(reply.content), _applied(request, reply)
        except Exception:  # it comes from the other side, and reading it fails in many ways
            self._drop(number, hospital, REFUSED)
            return None
        weight = MetricRecord({WEIGHT: self._plan.hospital(hospital).weight})
        reply.content = RecordDict({ARRAYS: to_array_record(adapter), "metrics": weight})
        sizes = {"bytes_up": bytes_up, "bytes_down": bytes_down}
        self._announcer.emit("hospital_trained", round=number, hospital=hospital, seconds=answer.seconds, **sizes)
        return reply

    def _drop(self, number: object, hospital: str, code: str) -> None:
        self._announcer.emit("hospital_dropped", round=number, hospital=hospital, code=code, step="train")


def _applied(request: Message, reply: Message) -> dict[str, np.ndarray[Any, Any]]:
    """Global adapter plus update, in float32.

    Raises:
      ModelError: names, shapes or types differ, or a value is not finite, in the update or in what it leads to.
    """
    trained = from_array_record(request.content.array_records[ARRAYS])
    update = from_array_record(reply.content.array_records.get(UPDATE, to_array_record({})))
    shapes = {name: array.shape for name, array in trained.items()}
    if {name: array.shape for name, array in update.items()} != shapes:
        raise ModelError("An update has other names or shapes than the adapter; the hospital's model or plan differs.")
    with np.errstate(over="ignore"):  # said below
        # In the order they were sent: FedAvgM pairs old and new arrays by position.
        applied = {name: trained[name] + update[name] for name in request.content.array_records[ARRAYS]}
    if not all(np.isfinite(array).all() for array in applied.values()):
        raise ModelError("An update takes the adapter beyond what float32 holds; the hospital's training diverged.")
    return applied
