"""However many hospitals there are, the coordinator holds three vectors at the most."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedslm.flower.compat import become_task, set_message_id
from fedslm.flower.records import ARRAYS, CONFIG, content_bytes, to_array_record
from fedslm.reporting.events import Announcer
from server.aggregate import AggregateFile
from server.receipts import ReceiptFile
from server.secure_grid import SecureGrid
from server.sessions import SessionCounter
from tests.builders import masked_plan, toy_hospitals
from tests.fakes import Arrays
from tests.masked import charter_of, masked_app, masked_hospitals

LENGTH = 1_000_000
VECTOR_BYTES = 4 * LENGTH


class Metered:
    """Nodes that work when their reply is pulled. What they allocate is not the coordinator's.

    Attributes:
      peak: the most that was allocated at once outside them, replies in delivery included.
    """

    closed = True

    def __init__(self, app: ClientApp, hospitals: Iterable[str]) -> None:
        become_task()
        self.peak, self._theirs = 0, 0
        self._app = app
        self._sent: dict[str, Message] = {}
        self._contexts = {
            number: Context(1, number, {"hospital": name}, RecordDict(), {})
            for number, name in enumerate(hospitals, start=1)
        }

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identities = []
        for message in messages:
            identities.append(f"m{len(self._sent)}-{message.metadata.dst_node_id}-{message.metadata.message_type}")
            set_message_id(message, identities[-1])
            self._sent[identities[-1]] = message
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._work(self._sent.pop(identity)) for identity in message_ids]

    def note(self) -> None:
        """Takes the peak since the last node worked into account."""
        self.peak = max(self.peak, tracemalloc.get_traced_memory()[1] - self._theirs)

    def _work(self, message: Message) -> Message:
        self.note()
        before, _ = tracemalloc.get_traced_memory()
        reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        after, _ = tracemalloc.get_traced_memory()
        self._theirs += after - before - content_bytes(reply.content)
        tracemalloc.reset_peak()
        return reply


def steps(index: int, number: int, trained: Arrays) -> Arrays:
    return {name: np.full_like(array, 0.01 * (index + 1)) for name, array in trained.items()}


def vectors_held(hospitals: int, folder: Path) -> float:
    """The coordinator's peak over a round, beyond what it was given, in vectors."""
    plan = masked_plan(hospitals=toy_hospitals(hospitals), adapter={"trained_parameters": LENGTH})
    network = Metered(masked_app(masked_hospitals(plan, steps)), plan.names)
    grid = SecureGrid(
        network,  # type: ignore[arg-type]
        charter=charter_of(plan),
        frozen={},
        announcer=Announcer(),
        counter=SessionCounter(folder / f"{hospitals}.json"),
        aggregates=AggregateFile(folder / f"{hospitals}.safetensors"),
        receipts=ReceiptFile(folder / f"{hospitals}.jsonl"),
    )
    arrays = to_array_record({"a": np.zeros((2, LENGTH // 4), np.float32), "b": np.zeros(LENGTH // 2, np.float32)})
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({"server-round": 1})})
    grid.join(timeout_s=60)
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    gc.collect()
    tracemalloc.start()
    try:
        grid.send_and_receive(messages)
        network.note()
    finally:
        tracemalloc.stop()
    assert len(grid.survivors) == hospitals
    return network.peak / VECTOR_BYTES


@pytest.mark.parametrize("hospitals", [3, 9])
def test_the_coordinator_holds_three_vectors_whatever_the_number_of_hospitals(hospitals: int, tmp_path: Path) -> None:
    assert 1.5 < vectors_held(hospitals, tmp_path) <= 3.3
