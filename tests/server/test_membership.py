"""Hospitals are asked again when it matters, and nobody who is silent or away holds up the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedslm.flower.records import CONFIG, join_reply, plan_config, read_plan
from fedslm.reporting.events import Announcer
from server.exchange import Exchange
from server.membership import Check, Membership
from simulations.local_grid import LocalGrid
from tests.builders import toy_hospitals, toy_plan
from tests.fakes import Clock, GrowingGrid, Recorder, hospital_app

PLAN = toy_plan(hospitals=toy_hospitals(4), min_cohort=2)
NODES: list[dict[str, Any]] = [{"hospital": name} for name in PLAN.names]


class Waiting:
    """A membership on a network, with its clock."""

    def __init__(
        self,
        *,
        is_dropped: Callable[[int, Message], bool] = lambda node, message: False,
        check: Check = lambda node, name, reply: "",
        online: list[list[int]] | None = None,
        nodes: list[dict[str, Any]] = NODES,
    ) -> None:
        self.recorder, self.clock = Recorder(), Clock(1.0)
        self.invited: list[int] = []
        self.told: list[tuple[int, str]] = []

        def listening(node: int, message: Message) -> bool:
            self.invited.append(node)
            return is_dropped(node, message)

        def invite(node: int, name: str) -> RecordDict:
            self.told.append((node, name))
            return RecordDict({CONFIG: plan_config(PLAN)})

        self.network = GrowingGrid(hospital_app(), nodes, is_dropped=listening)
        self.network.online = [[1, 2, 3, 4]] if online is None else online
        self.members = Membership(
            Exchange(self.network, poll_s=0.0, clock=self.clock),
            plan=PLAN,
            invite=invite,
            announcer=Announcer(self.recorder),
            check=check,
        )

    def renew(self, *hospitals: str, patience_s: float = 50, timeout_s: float = 500) -> list[int]:
        """Nodes that were asked."""
        self.invited.clear()
        self.members.renew(hospitals, patience_s=patience_s, timeout_s=timeout_s)
        return sorted(self.invited)


def test_only_those_named_are_asked_again() -> None:
    waiting = Waiting()
    waiting.members.join(timeout_s=100)
    assert waiting.renew("hospital-1", "hospital-3") == [2, 4]
    assert waiting.renew() == []
    assert list(waiting.members.node_of) == list(PLAN.names)


def test_an_invitation_is_made_for_the_hospital_that_the_node_was_last() -> None:
    waiting = Waiting(online=[[1, 2, 3, 4]])
    waiting.members.join(timeout_s=100)
    assert sorted(waiting.told) == [(node, "") for node in (1, 2, 3, 4)]
    waiting.told.clear()
    waiting.renew("hospital-1", "hospital-3")
    assert sorted(waiting.told) == [(2, "hospital-1"), (4, "hospital-3")]


def test_a_silent_node_is_left_out_after_some_patience_and_asked_again_the_next_time() -> None:
    mute = {2}
    waiting = Waiting(is_dropped=lambda node, message: node in mute)
    waiting.network.closed = True
    waiting.members.join(timeout_s=20)
    before = waiting.clock.now
    assert waiting.renew("hospital-0", patience_s=10) == [1, 2]
    assert 10 <= waiting.clock.now - before <= 20
    assert list(waiting.members.node_of) == ["hospital-0", "hospital-2", "hospital-3"]
    mute.clear()
    assert waiting.renew() == [2]
    assert list(waiting.members.node_of) == list(PLAN.names)


def test_nobody_waits_for_nodes_to_come_while_the_cohort_is_there() -> None:
    waiting = Waiting(online=[[1, 2, 3]])
    waiting.members.join(timeout_s=20)
    before = waiting.clock.now
    waiting.renew()
    assert waiting.clock.now - before < 10
    assert len(waiting.members.node_of) == 3


def test_a_cohort_that_went_away_is_waited_for() -> None:
    waiting = Waiting(online=[[1, 2, 3, 4]])
    waiting.members.join(timeout_s=20)
    waiting.network.online = [[1]] * 30 + [[1, 3, 4]]
    waiting.renew()
    assert list(waiting.members.node_of) == ["hospital-0", "hospital-2", "hospital-3"]


def test_a_cohort_that_stays_away_is_given_up_at_the_deadline() -> None:
    waiting = Waiting(online=[[1, 2, 3, 4]])
    waiting.members.join(timeout_s=20)
    waiting.network.online = [[1]]
    before = waiting.clock.now
    waiting.renew(timeout_s=100)
    assert 100 <= waiting.clock.now - before <= 110
    assert list(waiting.members.node_of) == ["hospital-0"]


def test_what_else_a_reply_must_hold_is_looked_at_before_the_name_is_entered() -> None:
    waiting = Waiting(check=lambda node, name, reply: "ADVERT_REFUSED" if name == "hospital-2" else "")
    waiting.members.join(timeout_s=20)
    assert list(waiting.members.node_of) == ["hospital-0", "hospital-1", "hospital-3"]
    assert waiting.recorder.of("hospital_refused", "hospital", "code") == [("node 3", "ADVERT_REFUSED")]


def test_a_second_node_under_a_name_is_refused_before_its_reply_is_looked_at() -> None:
    looked: list[str] = []
    joins = {"hospital-3": lambda message: join_reply(message, hospital="hospital-0", plan=read_plan(message))}
    network = LocalGrid(hospital_app(joins=joins), NODES)
    members = Membership(
        Exchange(network, poll_s=0.0, clock=Clock(0.1)),
        plan=PLAN,
        invite=lambda node, name: RecordDict({CONFIG: plan_config(PLAN)}),
        announcer=Announcer(),
        check=lambda node, name, reply: looked.append(name) or "",  # type: ignore[func-returns-value]
    )
    members.join(timeout_s=20)
    assert looked == ["hospital-0", "hospital-1", "hospital-2"]


class TestANameThatWasTaken:
    """Nodes 1 and 2 both say they are hospital-0; the other hospitals are at 3 and 4."""

    def waiting(self, **options: Any) -> Waiting:
        names = ("hospital-0", "hospital-0", "hospital-1", "hospital-2")
        waiting = Waiting(nodes=[{"hospital": name} for name in names], **options)
        waiting.members.join(timeout_s=20)
        assert waiting.members.hospital_of == {1: "hospital-0", 3: "hospital-1", 4: "hospital-2"}
        assert waiting.recorder.of("hospital_refused", "hospital", "code") == [("node 2", "NAME_TAKEN")]
        return waiting

    def test_it_is_given_to_the_other_node_when_its_holder_goes_away(self) -> None:
        waiting = self.waiting()
        waiting.network.online = [[2, 3, 4]]
        assert waiting.renew() == [2]
        assert waiting.members.hospital_of == {2: "hospital-0", 3: "hospital-1", 4: "hospital-2"}

    def test_the_other_node_is_left_in_peace_while_its_holder_keeps_it(self) -> None:
        waiting = self.waiting()
        assert waiting.renew("hospital-0") == [1]  # an invitation may cost a node its key: two would undo each other's
        assert waiting.renew() == []

    @pytest.mark.parametrize("closed", [False, True])
    def test_it_is_given_to_the_other_node_when_its_holder_is_refused(self, closed: bool) -> None:
        refused: set[int] = set()
        waiting = self.waiting(check=lambda node, name, reply: "ADVERT_REFUSED" if node in refused else "")
        waiting.network.closed = closed
        refused.add(1)
        assert waiting.renew("hospital-0") == [1, 2]
        assert waiting.members.hospital_of == {2: "hospital-0", 3: "hospital-1", 4: "hospital-2"}

    def test_a_holder_that_falls_silent_does_not_keep_it(self) -> None:
        mute: set[int] = set()
        waiting = self.waiting(is_dropped=lambda node, message: node in mute)
        mute.add(1)
        assert waiting.renew("hospital-0", patience_s=10) == [1]
        assert waiting.renew("hospital-0", patience_s=10) == [1, 2]
        assert waiting.members.hospital_of == {2: "hospital-0", 3: "hospital-1", 4: "hospital-2"}
