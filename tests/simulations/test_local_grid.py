"""The in-process grid behaves like a network: copies, contexts of their own, errors instead of exceptions."""

from __future__ import annotations

import threading

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedslm.flower.compat import CLIENT_APP_RAISED, become_task
from simulations.local_grid import LocalGrid


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.query("count")
    def count(message: Message, context: Context) -> Message:
        seen = int(context.state.config_records.get("seen", ConfigRecord({"n": 0}))["n"]) + 1  # type: ignore[arg-type]
        context.state["seen"] = ConfigRecord({"n": seen})
        return Message(RecordDict({"c": ConfigRecord({"seen": seen, **context.node_config})}), reply_to=message)

    @app.query("spoil")
    def spoil(message: Message, context: Context) -> Message:
        before = message.content.config_records["c"]["x"]
        message.content.config_records["c"]["x"] = -1
        return Message(RecordDict({"c": ConfigRecord({"before": before})}), reply_to=message)

    @app.query("fail")
    def fail(message: Message, context: Context) -> Message:
        raise ValueError("patient Jane Doe")

    return app


def messages(kind: str, *nodes: int) -> list[Message]:
    become_task()  # a grid does it too, but a test may make its messages first
    content = RecordDict({"c": ConfigRecord({"x": 7})})
    return [Message(content, node, f"query.{kind}") for node in nodes]


def grid(nodes: int = 2, **options: object) -> LocalGrid:
    return LocalGrid(echo_app(), [{"name": f"n{number}"} for number in range(nodes)], **options)  # type: ignore[arg-type]


def test_nodes_are_numbered_from_one_in_the_order_given() -> None:
    assert grid(3).get_node_ids() == [1, 2, 3]


def test_every_node_keeps_its_own_state_and_configuration() -> None:
    running = grid()
    running.send_and_receive(messages("count", 1, 1, 2))
    replies = running.send_and_receive(messages("count", 2, 1))
    assert [dict(reply.content.config_records["c"]) for reply in replies] == [
        {"seen": 2, "name": "n1"},
        {"seen": 3, "name": "n0"},
    ]


def test_what_a_client_does_to_its_message_reaches_nobody_else() -> None:
    sent = messages("spoil", 1, 2)  # both hold the same content, as a strategy's messages do
    replies = grid().send_and_receive(sent)
    assert [reply.content.config_records["c"]["before"] for reply in replies] == [7, 7]
    assert sent[0].content.config_records["c"]["x"] == 7


def test_nothing_runs_before_it_is_asked_for() -> None:
    running = grid()
    identities = running.push_messages(messages("count", 1, 2))
    assert running.pull_messages(["unknown"]) == []
    (only,) = running.pull_messages(identities)
    assert only.metadata.reply_to_message_id == identities[0]
    assert running.pull_messages(identities[:1]) == []
    assert len(running.pull_messages(identities)) == 1


def test_an_exception_becomes_an_error_without_its_text() -> None:
    (reply,) = grid().send_and_receive(messages("fail", 1))
    assert reply.error.code == CLIENT_APP_RAISED
    assert reply.error.reason == "ValueError"


def test_a_dropped_node_never_answers_and_holds_up_nobody() -> None:
    running = grid(is_dropped=lambda node_id, message: node_id == 1)
    identities = running.push_messages(messages("count", 1, 2))
    (reply,) = running.pull_messages(identities)
    assert reply.metadata.src_node_id == 2
    assert running.pull_messages(identities) == []


def test_a_message_to_nobody_is_an_error_of_the_caller() -> None:
    with pytest.raises(KeyError):
        grid().send_and_receive(messages("count", 9))


def test_clients_work_side_by_side_where_asked() -> None:
    together = threading.Barrier(2, timeout=20)
    app = ClientApp()

    @app.query("meet")
    def meet(message: Message, context: Context) -> Message:
        together.wait()  # breaks, and so fails the client, unless another one works at the same time
        return Message(RecordDict(), reply_to=message)

    with LocalGrid(app, [{}, {}], parallel=2) as running:
        replies = running.send_and_receive(messages("meet", 1, 2))
    assert [reply.has_error() for reply in replies] == [False, False]
    assert sorted(running.work_s) == sorted(reply.metadata.reply_to_message_id for reply in replies)


def test_a_closed_grid_drops_what_has_not_started() -> None:
    started, release = threading.Event(), threading.Event()
    app = ClientApp()
    worked: list[int] = []

    @app.query("work")
    def work(message: Message, context: Context) -> Message:
        worked.append(context.node_id)
        started.set()
        release.wait(20)
        return Message(RecordDict(), reply_to=message)

    with LocalGrid(app, [{}, {}], parallel=1) as running:
        identities = running.push_messages(messages("work", 1, 2))
        assert running.pull_messages(identities) == []
        assert started.wait(20)
    release.set()
    assert worked == [1]
