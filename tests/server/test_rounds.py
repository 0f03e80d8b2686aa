"""The round loop goes on from any checkpoint as if nothing had happened, and averages nothing that is not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedMedian

from fedslm.config.compose import compose
from fedslm.errors import ConfigError, RunError
from fedslm.flower.compat import become_task
from fedslm.flower.records import ARRAYS, CONFIG, from_array_record, to_array_record
from fedslm.reporting.events import Announcer, Event
from server.checkpoints import Checkpoint, Checkpoints
from server.rounds import RoundLoop, epsilon_curve, trained_names
from server.strategies import WEIGHT, build_strategy
from tests.builders import UNPRIVATE, masked_plan, toy_plan

STRATEGIES = ["fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi"]
START = Checkpoint(
    round=0,
    sessions=0,
    adapter={"x.lora_A.weight": np.ones((2, 3), np.float32), "x.lora_B.weight": np.zeros((3, 2), np.float32)},
    strategy={},
)


class Scripted:
    """Stands in for `ClearGrid`: answers every round with adapters that depend on the round and the one received."""

    survivors = ("hospital-0", "hospital-1")

    def __init__(self, *, spoil: float = 0.0, sessions: int = 0, attempts: int = 1) -> None:
        self.sent: list[dict[str, np.ndarray[Any, Any]]] = []
        self.sessions = sessions
        self._spoil, self._attempts = spoil, attempts

    def get_node_ids(self) -> list[int]:
        return [1, 2]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> list[Message]:
        self.sessions += self._attempts
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = "m"
        number, node = int(message.content[CONFIG]["server-round"]), message.metadata.dst_node_id
        arrays = from_array_record(message.content.array_records[ARRAYS])
        self.sent.append(arrays)
        step = np.random.default_rng([number, node]).normal(size=(3, 2)).astype(np.float32)
        adapter = {name: array + step + np.float32(self._spoil) for name, array in arrays.items()}
        weight = MetricRecord({WEIGHT: float(node)})
        return Message(RecordDict({ARRAYS: to_array_record(adapter), "metrics": weight}), reply_to=message)


@dataclasses.dataclass
class Seen:
    """Remembers what was announced."""

    events: list[Event] = dataclasses.field(default_factory=list)

    def notify(self, event: Event) -> None:
        self.events.append(event)


def loop(
    folder: Path, seen: Seen, *, rounds: int = 4, strategy: str = "fedadam", private: bool = False, **settings: Any
) -> RoundLoop:
    become_task()
    chosen = compose([f"strategy={strategy}"]).strategy
    plan = toy_plan(training={"rounds": rounds}, strategy=chosen, privacy={} if private else UNPRIVATE)
    return RoundLoop(
        plan=plan,
        strategy=build_strategy(plan.strategy, min_cohort=2),
        checkpoints=Checkpoints(folder, plan_sha256="a" * 64, description={}),
        announcer=Announcer(seen),
        **settings,
    )


def test_a_round_is_on_disk_before_it_is_called_finished(tmp_path: Path) -> None:
    seen, scored = Seen(), []
    end = loop(
        tmp_path, seen, rounds=2, private=True, after_round=lambda checkpoint: scored.append(checkpoint.round)
    ).run(Scripted(), START)
    assert [event.kind for event in seen.events] == ["round_started", "checkpoint_written", "round_finished"] * 2
    assert scored == [1, 2]
    assert (end.round, end.sessions) == (2, 2)
    epsilons = [event.fields["epsilon"] for event in seen.events if event.kind == "round_finished"]
    assert 0 < epsilons[0] < epsilons[1]
    assert seen.events[-1].fields["survivors"] == ("hospital-0", "hospital-1")


def test_attempts_that_came_to_nothing_have_cost_as_much(tmp_path: Path) -> None:
    seen, other = Seen(), Seen()
    end = loop(tmp_path, seen, rounds=2, private=True).run(Scripted(sessions=1, attempts=2), START)
    assert (end.round, end.sessions) == (2, 5)
    loop(tmp_path / "other", other, rounds=5, private=True).run(Scripted(), START)
    assert seen.events[-1].fields["epsilon"] == other.events[-1].fields["epsilon"]


def test_under_a_masked_plan_only_a_mean_is_asked_for(tmp_path: Path) -> None:
    plan = masked_plan()
    parts = {"checkpoints": Checkpoints(tmp_path, plan_sha256=plan.sha256, description={}), "announcer": Announcer()}
    with pytest.raises(ConfigError, match="FedMedian"):
        RoundLoop(plan=plan, strategy=FedMedian(), **parts)
    RoundLoop(plan=toy_plan(), strategy=FedMedian(), **parts)


def test_only_the_trained_half_travels_and_changes(tmp_path: Path) -> None:
    grid = Scripted()
    end = loop(tmp_path, Seen()).run(grid, START)
    assert all(set(arrays) == {"x.lora_B.weight"} for arrays in grid.sent)
    np.testing.assert_array_equal(end.adapter["x.lora_A.weight"], START.adapter["x.lora_A.weight"])
    assert end.adapter["x.lora_B.weight"].dtype == np.float32
    assert trained_names(toy_plan(adapter={"method": "full"}), START) == ["x.lora_A.weight", "x.lora_B.weight"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(tmp_path: Path, strategy: str) -> None:
    whole = loop(tmp_path / "whole", Seen(), strategy=strategy).run(Scripted(), START)
    loop(tmp_path / "broken", Seen(), rounds=2, strategy=strategy).run(Scripted(), START)
    middle = Checkpoints(tmp_path / "broken", plan_sha256="a" * 64, description={}).latest()
    assert middle is not None
    assert middle.round == 2
    resumed = loop(tmp_path / "broken", Seen(), strategy=strategy).run(Scripted(), middle)
    for name, array in (whole.adapter | whole.strategy).items():
        np.testing.assert_array_equal((resumed.adapter | resumed.strategy)[name], array)
    assert whole.adapter["x.lora_B.weight"].any()


def test_the_mean_has_the_public_weights(tmp_path: Path) -> None:
    end = loop(tmp_path, Seen(), rounds=1, strategy="fedavg").run(Scripted(), START)
    steps = [np.random.default_rng([1, node]).normal(size=(3, 2)).astype(np.float32) for node in (1, 2)]
    np.testing.assert_allclose(end.adapter["x.lora_B.weight"], (steps[0] + 2 * steps[1]) / 3, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_an_aggregate_that_is_not_finite_stops_the_run_before_it_is_written(tmp_path: Path, strategy: str) -> None:
    seen = Seen()
    loop(tmp_path, seen, rounds=1, strategy=strategy).run(Scripted(), START)
    first = Checkpoints(tmp_path, plan_sha256="a" * 64, description={}).latest()
    assert first is not None

    class Exploding(Scripted):
        def _reply(self, message: Message) -> Message:
            reply = super()._reply(message)
            arrays = reply.content.array_records[ARRAYS]
            huge = {name: np.full_like(array.numpy(), np.inf) for name, array in arrays.items()}
            reply.content[ARRAYS] = to_array_record(huge)
            return reply

    with pytest.raises(RunError, match=r"not finite after round 2; lower strategy\.eta") as stopped:
        loop(tmp_path, seen, strategy=strategy).run(Exploding(), first)
    assert stopped.value.exit_code == 1
    latest = Checkpoints(tmp_path, plan_sha256="a" * 64, description={}).latest()
    assert latest is not None
    assert latest.round == 1


def test_a_state_of_another_strategy_is_refused(tmp_path: Path) -> None:
    after = loop(tmp_path, Seen(), rounds=1, strategy="fedadam").run(Scripted(), START)
    with pytest.raises(RunError, match="belongs to another strategy"):
        loop(tmp_path, Seen(), strategy="fedavgm").run(Scripted(), after)


def test_epsilon_is_counted_only_where_there_is_privacy() -> None:
    assert epsilon_curve(toy_plan(privacy=UNPRIVATE)) is None
    assert epsilon_curve(toy_plan()) is not None


def test_a_strategy_is_told_the_round(tmp_path: Path) -> None:
    configs: list[ConfigRecord] = []

    class Listening(Scripted):
        def _reply(self, message: Message) -> Message:
            configs.append(message.content.config_records[CONFIG])
            return super()._reply(message)

    loop(tmp_path, Seen(), rounds=2).run(Listening(), START)
    assert [config["server-round"] for config in configs] == [1, 1, 2, 2]
