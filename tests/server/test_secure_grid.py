"""A round under secure aggregation: the sum of whoever got through, a new session where too few did, or nothing at all."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedslm.errors import AdvertError, BudgetExceededError, ConfigError, ShareError, TooFewHospitalsError
from fedslm.flower.records import ARRAYS, CONFIG, from_array_record, to_array_record
from fedslm.governance.plan import Plan, PlannedScores
from fedslm.reporting.events import Announcer
from fedslm.secagg.coordinator import Coordinator
from fedslm.secagg.messages import Advert, UnmaskReply
from fedslm.secagg.wire import decode, encode
from server import preparation
from server.aggregate import AggregateFile
from server.receipts import ReceiptFile
from server.secure_grid import SecureGrid
from server.sessions import SessionCounter
from simulations.local_grid import LocalGrid
from tests.builders import UNPRIVATE, masked_plan, toy_hospitals
from tests.fakes import Arrays, Clock, Recorder
from tests.masked import STEPS, MaskedHospital, charter_of, masked_app, masked_hospitals, step_of

FROZEN = {"A": np.full((2, 3), 0.5, np.float32)}
START = {"b": np.linspace(-1, 1, 4, dtype=np.float32), "a": np.ones((2, 3), np.float32)}  # not in order of names
WEIGHTS = (1.0, 0.5, 0.25, 0.75)
Dropped = Callable[[int, Message], bool]


def plan_for(hospitals: int = 3, *, colluders: int = 0, **changes: Any) -> Plan:
    members = tuple(
        dataclasses.replace(member, weight=weight)
        for member, weight in zip(toy_hospitals(hospitals), WEIGHTS, strict=False)
    )
    fixed = {"hospitals": members, "adapter": {"trained_parameters": 10}, "secagg": {"colluders": colluders}}
    return masked_plan(**{**fixed, "privacy": {"max_sessions": 6}, **changes})


def update_of(index: int, number: int, trained: Arrays) -> Arrays:
    rng = np.random.default_rng([index, number])
    return {name: rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in sorted(trained.items())}


def start_of(number: int) -> Arrays:
    """The adapter that a round starts from; another one every round."""
    return {name: array + np.float32(number - 1) for name, array in START.items()}


def mean_of(plan: Plan, survivors: Iterable[str], *, number: int = 1) -> Arrays:
    """The adapter that a round must end with."""
    start = start_of(number)
    indices = [plan.names.index(name) for name in survivors]
    total = sum(WEIGHTS[index] for index in indices)
    updates = {index: update_of(index, number, START) for index in indices}
    return {
        name: start[name] + sum(WEIGHTS[index] * updates[index][name] for index in indices) / total for name in start
    }


class Bench:
    """A secure grid over hospitals in this process, and everything that a test wants to look at."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        is_dropped: Dropped = lambda node, message: False,
        hospitals: dict[str, MaskedHospital] | None = None,
        finished: int = 0,
    ) -> None:
        self.plan, self.recorder = plan, Recorder()
        self.hospitals = masked_hospitals(plan, update_of) if hospitals is None else hospitals
        nodes = [{"hospital": name} for name in plan.names]
        self.network = LocalGrid(masked_app(self.hospitals), nodes, is_dropped=is_dropped)
        self.counter = SessionCounter(folder / "sessions.json")
        self.grid = SecureGrid(
            self.network,
            charter=charter_of(plan),
            frozen=FROZEN,
            announcer=Announcer(self.recorder),
            counter=self.counter,
            aggregates=AggregateFile(folder / "aggregate.safetensors"),
            receipts=ReceiptFile(folder / "receipts.jsonl"),
            finished=finished,
            poll_s=0.0,
            clock=Clock(1.0),
        )

    def joined(self) -> Bench:
        self.grid.join(timeout_s=100)
        return self

    def messages(self, *, number: int = 1, message_type: str = "train", **config: Any) -> list[Message]:
        record = ConfigRecord({"server-round": number, **config})
        content = RecordDict({ARRAYS: to_array_record(start_of(number)), CONFIG: record})
        return [Message(content, node, message_type) for node in reversed(self.grid.get_node_ids())]

    def round(self, *, number: int = 1) -> Arrays:
        (reply,) = self.grid.send_and_receive(self.messages(number=number), timeout=60)
        assert list(reply.content.array_records[ARRAYS]) == list(START)
        return from_array_record(reply.content.array_records[ARRAYS])

    def check(self, found: Arrays, *survivors: str, number: int = 1) -> None:
        """The sum is that of the survivors, to within rounding, and the grid says whose it is."""
        assert self.grid.survivors == survivors
        for name, array in mean_of(self.plan, survivors, number=number).items():
            np.testing.assert_allclose(found[name], array, atol=1e-6)

    def told(self, kind: str, *fields: str) -> list[Any]:
        return self.recorder.of(kind, *fields)


def silent(lost: Iterable[tuple[str, int]], *, sessions: int = 10**9) -> Dropped:
    """Nodes that never answer in a step, for so many messages each."""
    left = dict.fromkeys(lost, sessions)

    def is_dropped(node: int, message: Message) -> bool:
        key = (step_of(message), node)
        if left.get(key, 0) == 0:
            return False
        left[key] -= 1
        return True

    return is_dropped


def names(*nodes: int) -> tuple[str, ...]:
    return tuple(f"hospital-{node - 1}" for node in sorted(nodes))


class TestARoundThatGoesWell:
    def test_the_reply_is_the_adapter_plus_the_weighted_mean_and_the_sum_of_weights(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        (reply,) = bench.grid.send_and_receive(bench.messages())
        bench.check(from_array_record(reply.content.array_records[ARRAYS]), *bench.plan.names)
        assert reply.content.metric_records["metrics"]["weight"] == 2.5
        assert list(reply.content.config_records) == []

    def test_the_next_round_needs_no_invitation(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for()).joined()
        for number in (1, 2, 3):
            bench.check(bench.round(number=number), *bench.plan.names, number=number)
        assert bench.told("hospital_joined", "hospital") == list(bench.plan.names)
        assert {hospital.serial for hospital in bench.hospitals.values()} == {4}
        assert bench.told("session_started", "round", "session", "attempt") == [(1, 1, 0), (2, 2, 0), (3, 3, 0)]

    def test_what_a_strategy_put_into_the_config_arrives_and_is_left_alone(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for()).joined()
        sent = bench.messages(**{"proximal-mu": 0.5})
        bench.grid.send_and_receive(sent)
        for hospital in bench.hospitals.values():
            ((config, opening),) = hospital.seen
            assert config["proximal-mu"] == 0.5
            assert (config["server-round"], config["session"], config["attempt"]) == (1, 1, 0)
            assert (opening.round, opening.session, opening.attempt) == (1, 1, 0)
        assert set(sent[0].content.config_records[CONFIG]) == {"server-round", "proximal-mu"}

    def test_events_tell_of_bytes_and_times_and_nothing_else(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for()).joined()
        bench.round()
        for kind in ("hospital_trained", "hospital_masked"):
            rows = bench.told(kind, "round", "hospital", "bytes_up", "bytes_down")
            assert sorted(row[1] for row in rows) == list(bench.plan.names)
            assert all(row[0] == 1 and row[2] > 0 and row[3] > 0 for row in rows)

    def test_a_strategy_that_asks_some_gets_the_mean_of_those(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        sent = [message for message in bench.messages() if message.metadata.dst_node_id != 2]
        (reply,) = bench.grid.send_and_receive(sent)
        bench.check(from_array_record(reply.content.array_records[ARRAYS]), *names(1, 3, 4))

    def test_no_messages_are_no_round(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for()).joined()
        assert bench.grid.send_and_receive([]) == []
        assert bench.counter.started == 0

    @pytest.mark.parametrize("kind", ["evaluate", "query.other"])
    def test_what_is_no_training_is_refused(self, kind: str, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for()).joined()
        with pytest.raises(ConfigError, match="fraction_evaluate=0"):
            bench.grid.send_and_receive(bench.messages(message_type=kind))
        assert bench.counter.started == 0

    def test_another_adapter_than_the_plans_is_refused_before_anybody_trains(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(adapter={"trained_parameters": 11})).joined()
        with pytest.raises(ConfigError, match="has 10 parameters, the plan says 11"):
            bench.round()
        assert bench.counter.started == 0


def patterns(n: int) -> list[tuple[tuple[str, int], ...]]:
    """Every way in which up to n hospitals drop out, each at some step or not at all."""
    choices = itertools.product([None, *STEPS], repeat=n)
    return [tuple((step, node) for node, step in enumerate(choice, start=1) if step is not None) for choice in choices]


def outcome(n: int, colluders: int, lost: tuple[tuple[str, int], ...]) -> tuple[int, ...] | None:
    """Who must be in the sum, by the spec; None where the session must fail."""
    threshold = (n + colluders) // 2 + 1
    quorum = max(threshold, colluders + 2)
    alive = set(range(1, n + 1))
    counts = {}
    for step in STEPS:
        alive -= {node for where, node in lost if where == step}
        counts[step] = sorted(alive)
    enough = all(len(counts[step]) >= quorum for step in ("train", "mask"))
    enough = enough and all(len(counts[step]) >= threshold for step in ("confirm", "unmask"))
    return tuple(counts["mask"]) if enough else None


class TestDropouts:
    @pytest.mark.parametrize("lost", patterns(3), ids=str)
    def test_three_hospitals_in_every_pattern(self, lost: tuple[tuple[str, int], ...], tmp_path: Path) -> None:
        self.check(tmp_path, plan_for(3, privacy={"max_sessions": 1}), lost, colluders=0)

    @pytest.mark.parametrize("lost", [p for p in patterns(4) if 1 <= len(p) <= 2], ids=str)
    def test_four_hospitals_in_every_pattern_of_one_or_two(
        self, lost: tuple[tuple[str, int], ...], tmp_path: Path
    ) -> None:
        self.check(tmp_path, plan_for(4, colluders=1, privacy={"max_sessions": 1}), lost, colluders=1)

    def check(self, folder: Path, plan: Plan, lost: tuple[tuple[str, int], ...], *, colluders: int) -> None:
        bench = Bench(folder, plan, is_dropped=silent(lost)).joined()
        expected = outcome(len(plan.hospitals), colluders, lost)
        if expected is not None:
            bench.check(bench.round(), *names(*expected))
            assert bench.told("session_failed", "code") == []
        else:
            with pytest.raises(TooFewHospitalsError) as raised:
                bench.round()
            assert raised.value.exit_code == 4
            assert bench.told("session_failed", "session", "code") == [(1, "TOO_FEW")]
            assert not (folder / "aggregate.safetensors").exists()
        dropped = bench.told("hospital_dropped", "hospital", "code", "step")
        reached = [(f"hospital-{node - 1}", "NO_ANSWER", step) for step, node in lost]
        assert set(dropped) <= set(reached)
        assert expected is None or set(dropped) == set(reached)

    def test_a_session_that_failed_is_followed_by_another(self, tmp_path: Path) -> None:
        lost = silent([("mask", 1), ("mask", 2)], sessions=1)
        bench = Bench(tmp_path, plan_for(4), is_dropped=lost).joined()
        bench.check(bench.round(), *bench.plan.names)
        assert bench.counter.started == bench.grid.sessions == 2
        fields = ("round", "session", "code", "missing")
        assert bench.told("session_failed", *fields) == [(1, 1, "TOO_FEW", names(1, 2))]
        assert bench.told("session_started", "session", "attempt") == [(1, 0), (2, 1)]
        assert bench.told("hospital_joined", "hospital")[4:] == list(names(1, 2))  # only those were asked again
        assert [hospital.serial for hospital in bench.hospitals.values()] == [4, 4, 3, 3]

    def test_a_hospital_that_dropped_out_late_is_back_in_the_next_round(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4), is_dropped=silent([("confirm", 3)], sessions=1)).joined()
        bench.check(bench.round(), *bench.plan.names)
        bench.check(bench.round(number=2), *bench.plan.names, number=2)

    def test_never_enough_ends_with_the_names_of_the_missing(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(3), is_dropped=silent([("train", 1), ("mask", 2)])).joined()
        with pytest.raises(
            TooFewHospitalsError, match=r"Round 1 lost .* in 4 sessions.*resume when they are back"
        ) as raised:
            bench.round()
        assert raised.value.exit_code == 4
        assert "hospital-0 (NO_ANSWER in train), hospital-1 (NO_ANSWER in mask)" in str(raised.value)
        assert bench.told("session_failed", "session") == [1, 2, 3, 4]  # of 6: two are left for the rounds to come
        assert bench.grid.survivors == ()
        again = Bench(tmp_path, plan_for(3)).joined()
        again.check(again.round(), *again.plan.names)
        assert again.counter.started == 5

    def test_a_plan_that_has_no_session_left_starts_none(self, tmp_path: Path) -> None:
        plan = plan_for(3, privacy={"max_sessions": 2}, training={"rounds": 1})
        bench = Bench(tmp_path, plan, is_dropped=silent([("train", 1), ("mask", 2)])).joined()
        with pytest.raises(TooFewHospitalsError, match=r"in 2 sessions.*the plan has no session left"):
            bench.round()
        again = Bench(tmp_path, plan).joined()
        with pytest.raises(BudgetExceededError, match="All 2 sessions"):
            again.round()
        assert again.counter.started == 2
        assert again.told("session_started", "session") == []

    def test_too_few_to_begin_with_cost_no_session(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(3, privacy={"max_sessions": 5}), is_dropped=silent([("train", 1)])).joined()
        gone: list[int] = [1]
        bench.network.get_node_ids = lambda: [n for n in (1, 2, 3) if n not in gone]  # type: ignore[method-assign]
        with pytest.raises(TooFewHospitalsError, match=r"2 of 3 hospitals can take part .*missing: hospital-0\."):
            bench.round()
        assert bench.counter.started == 0

    def test_codes_of_hospitals_are_passed_on_by_step(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        bench.hospitals["hospital-3"].update = lambda number, trained: {
            name: np.full_like(array, np.nan) for name, array in trained.items()
        }
        bench.check(bench.round(), *names(1, 2, 3))
        assert bench.told("hospital_dropped", "hospital", "code", "step") == [("hospital-3", "NOT_FINITE", "mask")]

    @pytest.mark.parametrize("step", ["join", *STEPS])
    def test_a_reply_without_anything_in_it_makes_a_dropout_of_its_hospital(self, step: str, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4))
        pull = bench.network.pull_messages

        def emptied(identities: Iterable[str]) -> list[Message]:
            replies = pull(identities)
            for reply in replies:
                if reply.metadata.src_node_id == 2 and step_of(reply) == step:
                    reply.__dict__["_content"] = None
            return replies

        bench.network.pull_messages = emptied  # type: ignore[method-assign]
        found = bench.joined().round()
        bench.check(found, *(names(1, 3, 4) if step in ("join", "train", "mask") else bench.plan.names))
        refused = [("node 2", "MALFORMED")] if step == "join" else []
        assert bench.told("hospital_refused", "hospital", "code") == refused
        dropped = [] if step == "join" else [("hospital-1", "MALFORMED", step)]
        assert bench.told("hospital_dropped", "hospital", "code", "step") == dropped

    def test_an_error_reply_without_a_sender_is_laid_at_its_own_hospitals_door(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        pull = bench.network.pull_messages

        def anonymous(identities: Iterable[str]) -> list[Message]:
            replies = pull(identities)
            for index, reply in enumerate(replies):
                if reply.metadata.message_type == "query.mask" and reply.metadata.src_node_id == 2:
                    replies[index] = from_the_link(reply)
            return replies

        bench.network.pull_messages = anonymous  # type: ignore[method-assign]
        bench.check(bench.round(), *names(1, 3, 4))
        assert bench.told("hospital_dropped", "hospital", "code") == [("hospital-1", "FLOWER_5")]


def from_the_link(reply: Message) -> Message:
    """What the SuperLink answers in the place of a node that is gone: it names only the message."""
    error = Message(Error(5, "gone"), reply_to=Message(RecordDict(), 1, reply.metadata.message_type))
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    assert error.metadata.src_node_id == 1
    return error


class TestLies:
    def spoiled(self, bench: Bench, name: str, step: str, change: Callable[[bytes], bytes]) -> Bench:
        bench.hospitals[name].tamper = lambda where, data: change(data) if where == step else data
        return bench

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize(
        "change",
        [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"?" + data[1:]],
        ids=["cut", "longer", "empty", "magic"],
    )
    def test_a_broken_reply_makes_a_dropout_of_its_hospital(
        self, step: str, change: Callable[[bytes], bytes], tmp_path: Path
    ) -> None:
        bench = self.spoiled(Bench(tmp_path, plan_for(4)), "hospital-1", step, change).joined()
        summed = names(1, 3, 4) if step in ("train", "mask") else bench.plan.names
        bench.check(bench.round(), *summed)
        assert bench.told("hospital_dropped", "hospital", "code", "step") == [("hospital-1", "MALFORMED", step)]

    def test_a_false_share_is_found_out_and_does_no_harm_while_others_suffice(self, tmp_path: Path) -> None:
        bench = self.spoiled(Bench(tmp_path, plan_for(4)), "hospital-0", "unmask", false_shares).joined()
        bench.check(bench.round(), *bench.plan.names)
        assert bench.told("hospital_dropped", "hospital", "code", "step") == [("hospital-0", "FALSE_SHARES", "unmask")]

    def test_false_shares_that_cannot_be_told_apart_end_the_session_and_change_nothing(self, tmp_path: Path) -> None:
        plan = plan_for(3, privacy={"max_sessions": 2}, training={"rounds": 1})
        bench = Bench(tmp_path, plan, is_dropped=silent([("unmask", 3)])).joined()
        self.spoiled(bench, "hospital-0", "unmask", false_shares)
        with pytest.raises(TooFewHospitalsError, match=r"hospital-2 \(NO_ANSWER in unmask\)"):
            bench.round()
        assert bench.told("session_failed", "code") == ["FALSE_SHARES"] * 2
        assert not (tmp_path / "aggregate.safetensors").exists()

    def test_a_hospital_that_joins_with_anothers_advert_is_refused(self, tmp_path: Path) -> None:
        plan = plan_for(4)
        bench = Bench(tmp_path, plan)
        thief, victim = bench.hospitals["hospital-2"], bench.hospitals["hospital-3"]
        thief.new_advert = lambda: setattr(thief, "advert", victim.advert)  # type: ignore[method-assign]
        victim.new_advert()
        bench.joined()
        assert bench.told("hospital_refused", "hospital", "code") == [("node 3", "ADVERT_REFUSED")]
        bench.check(bench.round(), *names(1, 2, 4))

    def test_an_advert_for_another_plan_is_refused(self, tmp_path: Path) -> None:
        plan = plan_for(4)
        bench = Bench(tmp_path, plan)
        stranger = masked_hospitals(plan_for(4, nonce="1" * 32), update_of)["hospital-2"]
        stranger.new_advert()
        late = bench.hospitals["hospital-2"]
        late.new_advert = lambda: setattr(late, "advert", stranger.advert)  # type: ignore[method-assign]
        bench.joined()
        assert bench.told("hospital_refused", "code") == ["ADVERT_REFUSED"]


class TestAdverts:
    """Two with one key would end every session before it began; a recorded one would put a stranger in a hospital's place."""

    def copying(self, bench: Bench, *, joining: bool, thief: str = "hospital-3", victim: str = "hospital-0") -> Bench:
        """The thief's adverts carry the victim's newest key: those it joins with, or those in its shares, once."""
        one, other, left = bench.hospitals[thief], bench.hospitals[victim], [1]
        make = one.new_advert

        def copied(**_: Any) -> Advert:
            steals = left[0] > 0 and joining == (one.serial == 0)
            left[0] -= steals
            return make(key=other.key) if steals else make()

        one.new_advert = copied  # type: ignore[method-assign]
        return bench

    def test_whoever_joins_with_anothers_key_is_refused_and_nobody_else_suffers(self, tmp_path: Path) -> None:
        bench = self.copying(Bench(tmp_path, plan_for(4)), joining=True).joined()
        assert bench.told("hospital_refused", "hospital", "code") == [("node 4", "ADVERT_REFUSED")]
        bench.check(bench.round(), *names(1, 2, 3))
        assert bench.counter.started == 1

    def test_whoever_sends_anothers_next_key_drops_out_and_is_asked_for_its_own(self, tmp_path: Path) -> None:
        bench = self.copying(Bench(tmp_path, plan_for(4)), joining=False).joined()
        bench.check(bench.round(), *names(1, 2, 3))
        assert bench.told("hospital_dropped", "hospital", "code", "step") == [("hospital-3", "ADVERT_REFUSED", "train")]
        bench.check(bench.round(number=2), *bench.plan.names, number=2)
        assert bench.counter.started == 2

    def test_a_key_of_a_hospital_that_sat_the_session_out_cannot_be_copied_either(self, tmp_path: Path) -> None:
        bench = self.copying(Bench(tmp_path, plan_for(4)), joining=False, victim="hospital-1").joined()
        bench.grid.send_and_receive([message for message in bench.messages() if message.metadata.dst_node_id != 2])
        assert bench.grid.survivors == names(1, 3, 4)
        bench.check(bench.round(number=2), *bench.plan.names, number=2)
        assert bench.counter.started == 2

    def test_a_replayed_advert_does_not_put_anybody_in(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4), is_dropped=silent([("mask", 4)], sessions=1)).joined()
        hospital = bench.hospitals["hospital-3"]
        recorded = hospital.advert
        bench.check(bench.round(), *names(1, 2, 3))
        hospital.new_advert = lambda **_: setattr(hospital, "advert", recorded)  # type: ignore[method-assign, assignment]
        bench.check(bench.round(number=2), *names(1, 2, 3), number=2)
        assert bench.told("hospital_refused", "hospital", "code") == [("node 4", "ADVERT_REFUSED")]
        assert bench.told("session_started", "hospitals")[-1] == names(1, 2, 3)

    def test_an_old_advert_in_the_place_of_the_next_is_asked_for_anew(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        hospital = bench.hospitals["hospital-3"]
        make = hospital.new_advert
        hospital.serial = 0  # its next advert has the serial of its first
        hospital.new_advert = lambda **_: make()  # type: ignore[method-assign]
        bench.check(bench.round(), *bench.plan.names)
        bench.check(bench.round(number=2), *bench.plan.names, number=2)
        assert bench.told("hospital_joined", "hospital")[4:] == ["hospital-3"]

    def failing(self, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
        whole, left = Coordinator, [times]

        def made(*arguments: Any, **options: Any) -> Coordinator:
            left[0] -= 1
            if left[0] >= 0:
                raise AdvertError("The advert of 'hospital-1' is no good.")
            return whole(*arguments, **options)

        monkeypatch.setattr(preparation, "Coordinator", made)

    def test_adverts_that_make_no_session_cost_none_and_are_asked_for_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        self.failing(monkeypatch, times=1)
        bench.check(bench.round(), *bench.plan.names)
        assert bench.counter.started == 1
        assert [hospital.serial for hospital in bench.hospitals.values()] == [3] * 4
        assert bench.told("session_started", "session", "attempt") == [(1, 0)]
        assert bench.told("session_failed", "session") == []

    def test_adverts_that_never_make_a_session_end_the_round_with_what_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(tmp_path, plan_for(3)).joined()
        self.failing(monkeypatch, times=10**9)
        with pytest.raises(
            TooFewHospitalsError, match="hospital-0, hospital-1, hospital-2: The advert of 'hospital-1'"
        ):
            bench.round()
        assert bench.counter.started == 0
        monkeypatch.undo()
        bench.check(bench.round(), *bench.plan.names)

    def test_a_round_that_came_to_nothing_with_nobody_missing_says_why(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unsolved(_: object) -> None:
            raise ShareError("The shares of 1 seeds dealt by hospital-1 do not fit.")

        bench = Bench(tmp_path, plan_for(3, privacy={"max_sessions": 2}, training={"rounds": 1})).joined()
        monkeypatch.setattr(Coordinator, "finish", unsolved)
        with pytest.raises(
            TooFewHospitalsError, match=r"no sum in 2 sessions, .*dealt by hospital-1 do not fit; the model"
        ):
            bench.round()
        assert bench.told("session_failed", "code", "missing") == [("FALSE_SHARES", ())] * 2


def false_shares(data: bytes) -> bytes:
    reply = decode(UnmaskReply, data)
    return encode(dataclasses.replace(reply, self_shares=bytes(len(reply.self_shares))))


class TestRepeating:
    """Without privacy an adapter is masked for once, unless the attempt before can never be unmasked."""

    def test_another_attempt_brings_the_signatures_that_the_first_was_given_up(self, tmp_path: Path) -> None:
        lost = silent([("confirm", 1), ("confirm", 2), ("confirm", 3)], sessions=1)
        bench = Bench(tmp_path, plan_for(4, privacy={**UNPRIVATE, "max_sessions": 6}), is_dropped=lost).joined()
        bench.check(bench.round(), *bench.plan.names)
        assert bench.counter.started == 2
        _, opening = bench.hospitals["hospital-0"].seen[-1]
        assert [(session, member) for session, member, _ in opening.aborts] == [(1, name) for name in bench.plan.names]

    def test_the_next_round_needs_no_signatures(self, tmp_path: Path) -> None:
        lost = silent([("confirm", 1), ("confirm", 2), ("confirm", 3)], sessions=1)
        bench = Bench(tmp_path, plan_for(4, privacy={**UNPRIVATE, "max_sessions": 6}), is_dropped=lost).joined()
        bench.round()
        bench.round(number=2)
        assert bench.hospitals["hospital-0"].seen[-1][1].aborts == ()

    def test_with_privacy_nobody_is_asked_to_give_anything_up(self, tmp_path: Path) -> None:
        asked: list[str] = []
        lost = silent([("mask", 1), ("mask", 2)], sessions=1)

        def listening(node: int, message: Message) -> bool:
            asked.append(step_of(message))
            return lost(node, message)

        bench = Bench(tmp_path, plan_for(4), is_dropped=listening).joined()
        bench.round()
        assert "abort" not in asked

    def test_a_process_that_died_in_a_session_is_followed_by_one_that_gives_it_up(self, tmp_path: Path) -> None:
        plan = plan_for(4, privacy={**UNPRIVATE, "max_sessions": 6})
        first = Bench(tmp_path, plan).joined()

        def crash(kind: str, /, **fields: Any) -> None:
            if kind == "hospital_masked":
                raise KeyboardInterrupt

        first.grid._announcer.emit = crash  # type: ignore[method-assign, assignment]
        with first.network, pytest.raises(KeyboardInterrupt):
            first.round()
        second = Bench(tmp_path, plan, hospitals=first.hospitals).joined()
        second.check(second.round(), *plan.names)
        assert second.told("session_started", "session", "attempt") == [(2, 0)]

    def test_a_sum_that_was_read_is_not_asked_for_again(self, tmp_path: Path) -> None:
        plan = plan_for(3, privacy={**UNPRIVATE, "max_sessions": 6})
        first = Bench(tmp_path, plan).joined()
        found = first.round()
        second = Bench(tmp_path, plan, hospitals=first.hospitals).joined()  # died before the checkpoint
        again = second.round()
        assert all(np.array_equal(again[name], found[name]) for name in found)
        assert second.grid.survivors == plan.names
        assert second.counter.started == 1
        second.check(second.round(number=2), *plan.names, number=2)
        assert second.told("session_started", "round", "session", "attempt") == [(2, 2, 0)]

    def test_scores_are_told_of_as_one_accuracy_also_by_the_process_that_finds_the_sum(self, tmp_path: Path) -> None:
        plan = plan_for(3, privacy={"max_sessions": 6, "scores": PlannedScores(noise_multiplier=0.5)})
        hospitals = masked_hospitals(plan, update_of)
        given = {"hospital-0": (3.0, 20.0), "hospital-1": (4.0, 25.0), "hospital-2": (-2.0, 5.0)}  # weights differ
        for name, hospital in hospitals.items():
            right, patients = (number / (math.sqrt(2) * plan.largest_population) for number in given[name])
            hospital.scores = right, patients
        first = Bench(tmp_path, plan, hospitals=hospitals).joined()
        first.check(first.round(), *plan.names)  # the update is what it is without scores
        second = Bench(tmp_path, plan, hospitals=first.hospitals).joined()
        second.check(second.round(), *plan.names)
        noise = math.sqrt(2 * 3) * 0.5
        for bench in (first, second):
            ((round, accuracy, stddev),) = bench.told("held_out_scored", "round", "accuracy", "stddev")
            assert round == 0  # the initial adapter
            assert accuracy == pytest.approx((1 + 5 / 50) / 2, abs=1e-4)
            assert stddev == pytest.approx(noise * math.hypot(1, 5 / 50) / 100, rel=1e-4)
        assert second.counter.started == 1

    def test_scores_that_drown_in_their_noise_are_none(self, tmp_path: Path) -> None:
        plan = plan_for(3, privacy={"scores": PlannedScores(noise_multiplier=50.0)})
        hospitals = masked_hospitals(plan, update_of)
        for hospital in hospitals.values():
            hospital.scores = 0.01, 0.01
        bench = Bench(tmp_path, plan, hospitals=hospitals).joined()
        bench.check(bench.round(), *plan.names)
        assert bench.told("held_out_scored", "round", "accuracy", "stddev") == [(0, None, None)]

    def test_ctrl_c_while_shares_are_revealed_waits_until_the_sum_is_on_the_disk(self, tmp_path: Path) -> None:
        plan = plan_for(3, privacy={**UNPRIVATE, "max_sessions": 6})
        first = Bench(tmp_path, plan).joined()
        unmask, main = MaskedHospital.unmask, threading.main_thread().ident

        def pressed(hospital: MaskedHospital, message: Message) -> bytes:
            signal.pthread_kill(main, signal.SIGINT)  # type: ignore[arg-type]
            return unmask(hospital, message)

        one = first.hospitals["hospital-0"]
        one.unmask = functools.partial(pressed, one)  # type: ignore[method-assign]
        with first.network, pytest.raises(KeyboardInterrupt):
            first.round()
        del one.unmask
        second = Bench(tmp_path, plan, hospitals=first.hospitals).joined()
        second.check(second.round(), *plan.names)
        assert second.counter.started == 1

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda arrays: {"a": arrays["a"]},
            lambda arrays: {**arrays, "c": arrays["a"]},
            lambda arrays: {**arrays, "a": arrays["a"].T},
            lambda arrays: {**arrays, "b": np.full_like(arrays["b"], np.nan)},
        ],
        ids=["missing", "extra", "another shape", "nan"],
    )
    def test_a_kept_sum_that_does_not_fit_is_ignored_and_the_round_is_run(
        self, spoil: Callable[[Arrays], Arrays], tmp_path: Path
    ) -> None:
        first = Bench(tmp_path, plan_for(3)).joined()
        first.round()
        file = AggregateFile(tmp_path / "aggregate.safetensors")
        kept = file.load()
        assert kept is not None
        file.save(dataclasses.replace(kept, arrays=spoil(kept.arrays)))
        second = Bench(tmp_path, plan_for(3), hospitals=first.hospitals).joined()
        second.check(second.round(), *second.plan.names)
        assert second.counter.started == 2

    def test_a_sum_from_another_adapter_is_not_taken(self, tmp_path: Path) -> None:
        first = Bench(tmp_path, plan_for(3)).joined()
        first.round()
        second = Bench(tmp_path, plan_for(3), hospitals=first.hospitals, finished=1).joined()
        messages = second.messages()
        moved = {name: array + np.float32(0.25) for name, array in START.items()}
        for message in messages:
            message.content[ARRAYS] = to_array_record(moved)
        (reply,) = second.grid.send_and_receive(messages)
        found = from_array_record(reply.content.array_records[ARRAYS])
        np.testing.assert_allclose(found["a"], mean_of(first.plan, first.plan.names)["a"] + 0.25, atol=1e-6)
        assert second.counter.started == 2
