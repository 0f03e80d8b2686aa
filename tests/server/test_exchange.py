"""One answer a message, from whom it came, within the deadline; enough of them end a step early, but not in a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from flwr.app import Message, RecordDict

from fedslm.flower.compat import become_task, set_message_id
from server.exchange import AT_ONCE, GRACE_S, Answer, Exchange
from tests.fakes import Clock


class Network:
    """Nodes that answer at the time in `answers_at`, by node; a clock that moves by a second a look."""

    closed = False

    def __init__(self, answers_at: dict[int, float], *, lost: Iterable[int] = ()) -> None:
        become_task()
        self.clock = Clock(1.0)
        self.pushed: list[list[int]] = []
        self.asked: list[int] = []
        self._answers_at, self._lost = answers_at, set(lost)
        self._sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        batch = list(messages)
        self.pushed.append([message.metadata.dst_node_id for message in batch])
        return [self._push(message) for message in batch]

    def _push(self, message: Message) -> str | None:
        if message.metadata.dst_node_id in self._lost:
            return None  # as the SuperLink says it
        identity = f"m{len(self._sent)}"
        set_message_id(message, identity)
        self._sent[identity] = message
        return identity

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = list(message_ids)
        self.asked.append(len(wanted))
        due = [i for i in wanted if self._answers_at.get(self._sent[i].metadata.dst_node_id, 1e9) <= self.clock.now]
        return [Message(RecordDict(), reply_to=self._sent[identity]) for identity in due]


def exchange(network: Network) -> Exchange:
    return Exchange(network, poll_s=0.0, clock=network.clock)  # type: ignore[arg-type]


def messages(*nodes: int) -> list[Message]:
    become_task()
    return [Message(RecordDict(), node, "query.x") for node in nodes]


def answered(answers: Iterable[Answer]) -> list[tuple[int, bool]]:
    return [(answer.node_id, answer.reply is not None) for answer in answers]


def test_every_message_has_exactly_one_answer_in_the_order_of_arrival() -> None:
    network = Network({1: 8, 2: 3, 3: 5})
    assert answered(exchange(network).run(messages(1, 2, 3), timeout_s=100)) == [(2, True), (3, True), (1, True)]


def test_whoever_is_late_has_no_answer() -> None:
    network = Network({1: 3, 2: 500})
    found = list(exchange(network).run(messages(1, 2), timeout_s=20))
    assert answered(found) == [(1, True), (2, False)]
    assert 20 <= found[1].seconds <= 23


def test_messages_that_could_not_be_sent_have_no_answer_each() -> None:
    network = Network({2: 3}, lost=[1, 3])
    found = answered(exchange(network).run(messages(1, 2, 3), timeout_s=100))
    assert sorted(found) == [(1, False), (2, True), (3, False)]


def test_a_message_lives_no_longer_than_its_step() -> None:
    sent = messages(1)
    list(exchange(Network({1: 1})).run(sent, timeout_s=7.5))
    assert sent[0].metadata.ttl == 7.5


@pytest.mark.parametrize(
    ("arrival", "expected"), [(10.0, True), (18.0, True), (40.0, False)], ids=["in time", "in the grace", "too late"]
)
def test_when_enough_have_answered_the_others_have_as_long_again(arrival: float, expected: bool) -> None:
    network, came = Network({1: 2, 2: 10, 3: arrival}), []

    def is_enough() -> bool:
        return len(came) >= 2

    for answer in exchange(network).run(messages(1, 2, 3), timeout_s=300, is_enough=is_enough):
        came += [answer.node_id] if answer.reply is not None else []
    assert came == ([1, 2, 3] if expected else [1, 2])
    assert network.clock.now < 40


def test_a_grace_is_never_shorter_than_a_few_seconds() -> None:
    network = Network({1: 0, 2: GRACE_S})
    found = answered(exchange(network).run(messages(1, 2), timeout_s=300, is_enough=lambda: True))
    assert found == [(1, True), (2, True)]


def test_where_hospitals_share_a_machine_all_are_waited_for() -> None:
    network = Network({1: 1, 2: 200})
    network.closed = True
    found = answered(exchange(network).run(messages(1, 2), timeout_s=300, is_enough=lambda: True))
    assert found == [(1, True), (2, True)]


def test_a_grace_does_not_outlast_the_deadline() -> None:
    network = Network({1: 18, 2: 30})
    assert answered(exchange(network).run(messages(1, 2), timeout_s=20, is_enough=lambda: True))[1] == (2, False)


def test_large_messages_are_made_when_they_are_sent_and_asked_for_a_few_at_a_time() -> None:
    network = Network(dict.fromkeys(range(1, 8), 3.0))
    made: list[int] = []

    def on_demand() -> Iterator[Message]:
        for message in messages(*range(1, 8)):
            assert len(network.pushed) == len(made)  # all before it are gone
            made.append(message.metadata.dst_node_id)
            yield message

    found = answered(exchange(network).run(on_demand(), timeout_s=100, is_large=True))
    assert sorted(found) == [(node, True) for node in range(1, 8)]
    assert network.pushed == [[node] for node in range(1, 8)]
    assert max(network.asked) == AT_ONCE


def test_small_messages_travel_together() -> None:
    network = Network(dict.fromkeys(range(1, 8), 3.0))
    list(exchange(network).run(messages(*range(1, 8)), timeout_s=100))
    assert network.pushed == [list(range(1, 8))]
    assert max(network.asked) == 7
