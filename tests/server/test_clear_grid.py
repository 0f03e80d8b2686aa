"""The exchange: who may join, whose update counts, what becomes of a fault. No model, no torch."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedslm.errors import BudgetExceededError, TooFewHospitalsError
from fedslm.flower.records import (
    ARRAYS,
    CONFIG,
    UPDATE,
    ErrorCode,
    from_array_record,
    join_reply,
    plan_config,
    read_plan,
    to_array_record,
    update_reply,
)
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer
from server.clear_grid import ClearGrid
from server.strategies import WEIGHT
from simulations.local_grid import LocalGrid
from tests.builders import UNPRIVATE, toy_plan
from tests.fakes import (
    Arrays,
    BackwardsGrid,
    Behaviour,
    Clock,
    Counting,
    GrowingGrid,
    LosingGrid,
    Recorder,
    adds,
    answers,
    hospital_app,
    refuses,
)

PLAN = toy_plan()
TRAINED = {"b": np.ones(3, np.float32), "a": np.zeros((2, 2), np.float32)}


def nodes(*names: str) -> list[dict[str, Any]]:
    return [{"hospital": name} for name in names or PLAN.names]


def clear(grid: LocalGrid, recorder: Recorder, *, plan: Plan = PLAN, step_s: float = 0.01) -> ClearGrid:
    announcer = Announcer(recorder)
    return ClearGrid(
        grid, plan=plan, frozen={}, announcer=announcer, counter=Counting(), poll_s=0.0, clock=Clock(step_s)
    )


def joined(app: ClientApp, recorder: Recorder, **options: Any) -> ClearGrid:
    """A grid on which everybody has joined."""
    kind = options.pop("kind", LocalGrid)
    grid = clear(kind(app, nodes(), **options), recorder)
    grid.join(timeout_s=10)
    return grid


def requests(grid: ClearGrid, number: int = 1) -> list[Message]:
    """What a strategy would send: one content for all, nodes in no particular order."""
    config = plan_config(PLAN)
    config["server-round"] = number
    content = RecordDict({ARRAYS: to_array_record(TRAINED), CONFIG: config})
    return [Message(content, node, "train") for node in reversed(grid.get_node_ids())]


def adapters(replies: list[Message]) -> list[float]:
    return [float(from_array_record(reply.content.array_records[ARRAYS])["a"][0, 0]) for reply in replies]


def message_of(update: Any) -> Behaviour:
    return lambda message: update_reply(message, update)


class TestJoin:
    def test_hospitals_are_known_by_the_plans_order_whatever_their_nodes(self) -> None:
        recorder = Recorder()
        grid = clear(LocalGrid(hospital_app(), nodes("hospital-2", "hospital-0", "hospital-1")), recorder)
        grid.join(timeout_s=10)
        assert grid.get_node_ids() == [2, 3, 1]
        assert recorder.of("hospital_refused", "code") == []

    def test_the_second_node_under_a_name_is_refused(self) -> None:
        recorder = Recorder()
        grid = clear(LocalGrid(hospital_app(), nodes("hospital-0", "hospital-0", "hospital-1")), recorder)
        grid.join(timeout_s=10)
        assert grid.get_node_ids() == [1, 3]
        assert recorder.of("hospital_refused", "hospital", "code") == [("node 2", "NAME_TAKEN")]

    def test_a_hospital_that_approved_another_plan_is_refused(self) -> None:
        other = dataclasses.replace(PLAN, nonce="1" * 32)
        joins = {"hospital-0": lambda message: join_reply(message, hospital="hospital-0", plan=other)}
        recorder = Recorder()
        grid = clear(LocalGrid(hospital_app(joins=joins), nodes()), recorder)
        grid.join(timeout_s=10)
        assert grid.get_node_ids() == [2, 3]
        assert recorder.of("hospital_refused", "code") == ["NOT_IN_PLAN"]

    @pytest.mark.parametrize(
        ("behaviour", "code"),
        [
            (refuses(ErrorCode.PLAN_REFUSED), "PLAN_REFUSED"),
            (lambda message: join_reply(message, hospital="elsewhere", plan=read_plan(message)), "NOT_IN_PLAN"),
            (lambda message: Message(RecordDict(), reply_to=message), "NOT_IN_PLAN"),
            (lambda message: empty_reply(message), "MALFORMED"),
        ],
    )
    def test_whoever_does_not_belong_is_refused_by_its_code(self, behaviour: Behaviour, code: str) -> None:
        recorder = Recorder()
        joins = {"hospital-1": behaviour}
        grid = clear(LocalGrid(hospital_app(joins=joins), nodes()), recorder)
        grid.join(timeout_s=10)
        assert recorder.of("hospital_refused", "hospital", "code") == [("node 2", code)]
        assert recorder.of("hospital_joined", "hospital") == ["hospital-0", "hospital-2"]

    def test_fewer_than_the_cohort_stop_the_run(self) -> None:
        joins = {name: refuses(ErrorCode.PLAN_REFUSED) for name in ("hospital-0", "hospital-2")}
        grid = clear(LocalGrid(hospital_app(joins=joins), nodes()), Recorder())
        with pytest.raises(TooFewHospitalsError, match="1 of 3 hospitals joined, the plan needs 2") as raised:
            grid.join(timeout_s=10)
        assert raised.value.exit_code == 4

    def test_nobody_online_ends_at_the_deadline(self) -> None:
        with pytest.raises(TooFewHospitalsError, match="0 of 3"):
            clear(LocalGrid(hospital_app(), []), Recorder(), step_s=1).join(timeout_s=10)

    def test_a_node_that_does_not_answer_holds_up_nobody_else(self) -> None:
        recorder = Recorder()
        silent = LocalGrid(hospital_app(), nodes(), is_dropped=lambda node_id, message: node_id == 1)
        grid = clear(silent, recorder, step_s=1)
        grid.join(timeout_s=10)
        assert grid.get_node_ids() == [2, 3]
        assert recorder.of("hospital_refused", "hospital", "code") == [("node 1", "NO_ANSWER")]

    def test_late_nodes_are_waited_for_even_when_a_stranger_came_first(self) -> None:
        recorder = Recorder()
        network = GrowingGrid(hospital_app(), nodes("stranger", *PLAN.names))
        network.online = [[], [1], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]
        grid = clear(network, recorder)
        grid.join(timeout_s=10)
        assert grid.get_node_ids() == [2, 3, 4]
        assert recorder.of("hospital_refused", "hospital", "code") == [("node 1", "NOT_IN_PLAN")]

    def test_a_node_that_comes_back_is_asked_again(self) -> None:
        replies: Iterator[Behaviour] = iter((refuses(ErrorCode.PLAN_REFUSED), agree("hospital-0")))
        joins = {"hospital-0": lambda message: next(replies)(message)}
        network = GrowingGrid(hospital_app(joins=joins), nodes())
        network.online = [[1], [1], [2], [2], [1, 2, 3]]
        recorder = Recorder()
        grid = clear(network, recorder)
        grid.join(timeout_s=10)
        assert grid.get_node_ids() == [1, 2, 3]
        assert recorder.of("hospital_refused", "code") == ["PLAN_REFUSED"]

    def test_a_node_that_goes_away_frees_its_name(self) -> None:
        network = GrowingGrid(hospital_app(), nodes("hospital-0", "hospital-0", "hospital-1", "hospital-2"))
        network.online = [[1], [1], [2], [2, 3, 4]]
        grid = clear(network, Recorder())
        grid.join(timeout_s=10)
        assert grid.get_node_ids() == [2, 3, 4]


def agree(hospital: str) -> Behaviour:
    return lambda message: join_reply(message, hospital=hospital, plan=read_plan(message))


class TestExchange:
    @pytest.mark.parametrize("kind", [LocalGrid, BackwardsGrid])
    def test_replies_come_in_the_plans_order_whoever_answers_first(self, kind: type[LocalGrid]) -> None:
        recorder = Recorder()
        app = hospital_app({name: adds(number + 1.0) for number, name in enumerate(PLAN.names)})
        grid = joined(app, recorder, kind=kind)
        assert adapters(grid.send_and_receive(requests(grid))) == [1.0, 2.0, 3.0]
        assert grid.survivors == PLAN.names
        assert sorted(recorder.of("hospital_trained", "hospital")) == list(PLAN.names)

    def test_a_reply_is_the_whole_adapter_with_its_public_weight_and_nothing_else(self) -> None:
        grid = joined(hospital_app({"hospital-0": adds(0.5)}), Recorder())
        content = grid.send_and_receive(requests(grid))[0].content
        assert {name: dict(record) for name, record in content.metric_records.items()} == {"metrics": {WEIGHT: 1.0}}
        assert list(content.array_records) == [ARRAYS]
        found = from_array_record(content.array_records[ARRAYS])
        assert {name: array.tolist() for name, array in found.items()} == {"a": [[0.5] * 2] * 2, "b": [1.5] * 3}
        assert list(content.config_records) == []

    def test_a_round_goes_on_without_a_hospital_that_does_not_answer(self) -> None:
        recorder = Recorder()
        grid = joined(hospital_app(), recorder, is_dropped=lambda node, message: is_training(message) and node == 2)
        replies = grid.send_and_receive(requests(grid), timeout=5)
        assert len(replies) == 2
        assert grid.survivors == ("hospital-0", "hospital-2")
        assert recorder.of("hospital_dropped", "round", "hospital", "code") == [(1, "hospital-1", "NO_ANSWER")]

    def test_a_message_that_could_not_be_sent_is_no_answer(self) -> None:
        recorder = Recorder()
        LosingGrid.lost = 3
        grid = joined(hospital_app(), recorder, kind=LosingGrid)
        grid.send_and_receive(requests(grid))
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-2", "NO_ANSWER")]

    def test_an_error_is_known_by_its_name(self) -> None:
        recorder = Recorder()
        grid = joined(hospital_app({"hospital-1": refuses(ErrorCode.BUDGET_EXHAUSTED)}), recorder)
        grid.send_and_receive(requests(grid))
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-1", "BUDGET_EXHAUSTED")]

    def test_an_exception_in_the_client_is_flowers_code_without_its_text(self) -> None:
        def fail(message: Message) -> Message:
            raise ValueError("patient Jane Doe")

        recorder = Recorder()
        grid = joined(hospital_app({"hospital-1": fail}), recorder)
        grid.send_and_receive(requests(grid))
        assert recorder.of("hospital_dropped", "code") == ["FLOWER_2"]
        assert "Jane" not in str([dict(event.fields) for event in recorder.events])

    @pytest.mark.parametrize(
        "update",
        [
            {"a": np.zeros((2, 2), np.float32)},
            {"a": np.zeros((2, 2), np.float32), "b": np.zeros(4, np.float32)},
            {"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32), "c": np.zeros(1, np.float32)},
            {"a": np.zeros((2, 2), np.float32), "b": np.array([0, np.nan, 0], np.float32)},
            {"a": np.full((2, 2), np.inf, np.float32), "b": np.zeros(3, np.float32)},
            {},
        ],
        ids=["missing", "other shape", "extra", "nan", "inf", "empty"],
    )
    def test_an_update_that_does_not_fit_is_dropped_never_averaged(self, update: Arrays) -> None:
        recorder = Recorder()
        app = hospital_app({"hospital-0": message_of(update), "hospital-1": adds(1), "hospital-2": adds(2)})
        grid = joined(app, recorder)
        assert adapters(grid.send_and_receive(requests(grid))) == [1.0, 2.0]
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-0", "ADAPTER_REFUSED")]

    @pytest.mark.parametrize(
        "record",
        [
            ArrayRecord({"a": Array(np.zeros((2, 2))), "b": Array(np.zeros(3))}),
            ArrayRecord({"a": Array("float32", (2, 2), "numpy.ndarray", b"junk"), "b": Array(np.zeros(3, np.float32))}),
            ArrayRecord({"a": Array("float32", (2, 2), "other", b"junk"), "b": Array(np.zeros(3, np.float32))}),
        ],
        ids=["float64", "not NumPy's format", "another format"],
    )
    def test_an_update_that_cannot_be_read_is_dropped(self, record: ArrayRecord) -> None:
        recorder = Recorder()
        app = hospital_app({"hospital-2": lambda m: Message(RecordDict({UPDATE: record}), reply_to=m)})
        grid = joined(app, recorder)
        assert len(grid.send_and_receive(requests(grid))) == 2
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-2", "ADAPTER_REFUSED")]

    def test_an_archive_in_the_place_of_an_array_is_dropped(self) -> None:
        archive = io.BytesIO()
        np.savez(archive, **TRAINED)
        array = Array("float32", (2, 2), "numpy.ndarray", archive.getvalue())
        record = ArrayRecord({"a": array, "b": Array(np.zeros(3, np.float32))})
        recorder = Recorder()
        grid = joined(
            hospital_app({"hospital-2": lambda m: Message(RecordDict({UPDATE: record}), reply_to=m)}), recorder
        )
        assert len(grid.send_and_receive(requests(grid))) == 2
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-2", "ADAPTER_REFUSED")]

    def test_a_reply_without_anything_in_it_is_dropped(self) -> None:
        recorder = Recorder()
        grid = joined(hospital_app({"hospital-0": empty_reply}), recorder)
        assert len(grid.send_and_receive(requests(grid))) == 2
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-0", "ADAPTER_REFUSED")]

    def test_whatever_goes_wrong_while_a_reply_is_read_only_its_hospital_drops_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(record: ArrayRecord) -> Arrays:
            found = from_array_record(record)
            if float(next(iter(found.values())).flat[0]) == 7.0:
                raise RuntimeError("a reader's own fault")
            return found

        recorder = Recorder()
        grid = joined(hospital_app({"hospital-1": adds(7.0)}), recorder)
        monkeypatch.setattr("server.clear_grid.from_array_record", failing)
        assert adapters(grid.send_and_receive(requests(grid))) == [0.0, 0.0]
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-1", "ADAPTER_REFUSED")]

    def test_an_update_that_takes_the_adapter_out_of_float32_is_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TRAINED, "b", np.full(3, 3e38, np.float32))
        recorder = Recorder()
        grid = joined(hospital_app({"hospital-1": adds(3e38)}), recorder)
        assert len(grid.send_and_receive(requests(grid))) == 2
        assert recorder.of("hospital_dropped", "hospital", "code") == [("hospital-1", "ADAPTER_REFUSED")]

    def test_fewer_answers_than_the_cohort_stop_the_run(self) -> None:
        app = hospital_app({name: refuses(ErrorCode.DATA_UNUSABLE) for name in PLAN.names[:2]})
        grid = joined(app, Recorder())
        with pytest.raises(TooFewHospitalsError, match="1 of 3 hospitals answered, the plan needs 2") as raised:
            grid.send_and_receive(requests(grid))
        assert raised.value.exit_code == 4

    def test_what_one_client_does_to_its_message_reaches_no_other(self) -> None:
        def spoil(message: Message) -> Message:
            arrays = message.content.array_records[ARRAYS]
            update = {name: np.zeros_like(array) for name, array in from_array_record(arrays).items()}
            arrays["a"] = Array(np.full((2, 2), 9, np.float32))
            return update_reply(message, update)

        grid = joined(hospital_app(dict.fromkeys(PLAN.names, spoil)), Recorder())
        assert adapters(grid.send_and_receive(requests(grid))) == [0.0, 0.0, 0.0]

    def test_the_deadline_holds(self) -> None:
        clock = Clock(1.0)
        silent = LocalGrid(hospital_app(), nodes(), is_dropped=lambda node, message: is_training(message))
        options = {"announcer": Announcer(), "counter": Counting(), "poll_s": 0.0, "clock": clock}
        grid = ClearGrid(silent, plan=PLAN, frozen={}, **options)
        grid.join(timeout_s=100)
        before = clock.now
        with pytest.raises(TooFewHospitalsError):
            grid.send_and_receive(requests(grid), timeout=20)
        assert 20 <= clock.now - before <= 30

    def test_a_message_does_not_outlive_its_round(self) -> None:
        lives: list[float] = []

        def note(message: Message) -> Message:
            lives.append(message.metadata.ttl)
            return adds(0.0)(message)

        grid = joined(hospital_app(dict.fromkeys(PLAN.names, note)), Recorder())
        grid.send_and_receive(requests(grid))
        grid.send_and_receive(requests(grid), timeout=7)
        assert lives == [PLAN.deadline_s] * 3 + [7] * 3

    def test_frozen_arrays_travel_beside_the_trained_ones(self) -> None:
        def frozen(message: Message) -> Message:
            value = from_array_record(message.content.array_records["frozen"])["A"][0]
            return adds(float(value))(message)

        app = hospital_app(dict.fromkeys(PLAN.names, frozen))
        grid = ClearGrid(
            LocalGrid(app, nodes()),
            plan=PLAN,
            frozen={"A": np.full(1, 4, np.float32)},
            announcer=Announcer(),
            counter=Counting(),
        )
        grid.join(timeout_s=10)
        assert adapters(grid.send_and_receive(requests(grid))) == [4.0] * 3

    def test_what_a_strategy_put_into_the_config_travels_beside_the_plan(self) -> None:
        seen: list[dict[str, Any]] = []

        def note(message: Message) -> Message:
            seen.append(dict(message.content.config_records[CONFIG]))
            return adds(0.0)(message)

        grid = joined(hospital_app(dict.fromkeys(PLAN.names, note)), Recorder())
        config = ConfigRecord({"server-round": 1, "proximal-mu": 0.5})
        content = RecordDict({ARRAYS: to_array_record(TRAINED), CONFIG: config})
        grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
        assert seen == [{"server-round": 1, "proximal-mu": 0.5, "plan": PLAN.to_bytes()}] * 3
        assert set(config) == {"server-round", "proximal-mu"}

    def test_a_session_is_counted_before_its_first_message(self) -> None:
        counted: list[int] = []
        recorder, counter = Recorder(), Counting(started=4)

        def note(message: Message) -> Message:
            counted.append(counter.started)
            return adds(0.0)(message)

        network = LocalGrid(hospital_app(dict.fromkeys(PLAN.names, note)), nodes())
        plan = toy_plan(privacy={"max_sessions": 5})
        grid = ClearGrid(network, plan=plan, frozen={}, announcer=Announcer(recorder), counter=counter)
        grid.join(timeout_s=10)
        grid.send_and_receive(requests(grid))
        assert counted == [5, 5, 5]
        assert grid.sessions == 5
        fields = ("round", "session", "attempt", "hospitals")
        assert recorder.of("session_started", *fields) == [(1, 5, 0, PLAN.names)]

    def test_a_session_that_nobody_paid_for_is_not_started(self) -> None:
        counter = Counting(started=PLAN.privacy.max_sessions)
        network = LocalGrid(hospital_app(), nodes())
        for plan, is_refused in ((PLAN, True), (toy_plan(privacy=UNPRIVATE), False)):
            grid = ClearGrid(network, plan=plan, frozen={}, announcer=Announcer(), counter=counter)
            grid.join(timeout_s=10)
            if is_refused:
                with pytest.raises(BudgetExceededError, match="All 3 sessions") as raised:
                    grid.send_and_receive(requests(grid))
                assert raised.value.exit_code == 3
                assert counter.started == 3
            else:
                assert len(grid.send_and_receive(requests(grid))) == 3


def empty_reply(message: Message) -> Message:
    """Neither content nor an error; the link lets it through."""
    reply = Message(RecordDict(), reply_to=message)
    reply.__dict__["_content"] = None
    return reply


def is_training(message: Message) -> bool:
    return message.metadata.message_type == "train"


def test_an_update_may_depend_on_the_adapter_that_was_sent() -> None:
    double = answers(lambda trained: {name: array * 2 for name, array in trained.items()})
    grid = joined(hospital_app(dict.fromkeys(PLAN.names, double)), Recorder())
    reply = grid.send_and_receive(requests(grid))[0]
    assert from_array_record(reply.content.array_records[ARRAYS])["b"].tolist() == [3.0, 3.0, 3.0]
