"""The bytes that `fedslm plan` prints are those that travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedslm.flower.records import ARRAYS, CONFIG, FROZEN, SECAGG, content_bytes, to_array_record
from fedslm.governance.plan import Plan, PlannedScores
from fedslm.reporting.events import Announcer
from server.aggregate import AggregateFile
from server.receipts import ReceiptFile
from server.secure_grid import SecureGrid
from server.sessions import SessionCounter
from simulations.local_grid import LocalGrid
from simulations.traffic import session_traffic
from tests.builders import masked_plan, toy_hospitals, toy_plan
from tests.fakes import Arrays
from tests.masked import charter_of, masked_app, masked_hospitals

TRAINED, FROZEN_VALUES = 1001, 40


class Counted(LocalGrid):
    """Adds up what travels to and from every node, without what NumPy writes before an array's values."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(masked_app(masked_hospitals(plan, still)), [{"hospital": name} for name in plan.names])
        self.up: Counter[int] = Counter()
        self.down: Counter[int] = Counter()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = list(messages)
        for message in sent:
            self.down[message.metadata.dst_node_id] += pure_bytes(message.content)
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            self.up[reply.metadata.src_node_id] += pure_bytes(reply.content)
        return replies


def pure_bytes(content: RecordDict) -> int:
    arrays = [array for name in (ARRAYS, FROZEN) for array in content.array_records.get(name, {}).values()]
    headers = sum(len(array.data) - 4 * int(np.prod(array.shape)) for array in arrays)
    # the strategy's own keys are numbers, and are not counted as bytes
    assert set(content.array_records) <= {ARRAYS, FROZEN, SECAGG}
    return content_bytes(content) - headers


def still(index: int, number: int, trained: Arrays) -> Arrays:
    return {name: np.zeros_like(array) for name, array in trained.items()}


SCORED = {"scores": PlannedScores(noise_multiplier=2.0)}


@pytest.mark.parametrize(("hospitals", "bits", "privacy"), [(3, 32, {}), (5, 21, {}), (3, 25, SCORED)])
def test_a_session_moves_what_was_announced(
    hospitals: int, bits: int, privacy: dict[str, PlannedScores], tmp_path: Path
) -> None:
    sizes = {"adapter": {"trained_parameters": TRAINED}, "hospitals": toy_hospitals(hospitals)}
    plan = masked_plan(**sizes, secagg={"ring_bits": bits}, privacy=privacy)
    network = Counted(plan)
    grid = SecureGrid(
        network,
        charter=charter_of(plan),
        frozen={"A": np.zeros(FROZEN_VALUES, np.float32)},
        announcer=Announcer(),
        counter=SessionCounter(tmp_path / "sessions.json"),
        aggregates=AggregateFile(tmp_path / "aggregate.safetensors"),
        receipts=ReceiptFile(tmp_path / "receipts.jsonl"),
    )
    grid.join(timeout_s=60)
    network.up.clear()
    network.down.clear()
    arrays = to_array_record({"B": np.zeros(TRAINED, np.float32)})
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({"server-round": 1})})
    grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
    for node, name in enumerate(plan.names, start=1):
        traffic = session_traffic(plan, name, frozen=FROZEN_VALUES)
        assert (network.up[node], network.down[node]) == (traffic.up, traffic.down)


def test_in_the_clear_the_update_is_all_that_goes_up() -> None:
    traffic = session_traffic(toy_plan(), "hospital-0", frozen=50)
    assert (traffic.up, traffic.down) == (4 * 100, 4 * 150 + len(toy_plan().to_bytes()))
