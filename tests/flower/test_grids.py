"""A grid around a grid passes everything on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedslm.flower.compat import become_task
from fedslm.flower.grids import ForwardingGrid


class Listening:
    """Remembers what it was asked."""

    closed = True
    work_s = {"m": 1.5}  # noqa: RUF012
    run = "the run"

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **options: self.calls.append((name, (args, options))) or f"result of {name}"


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("get_node_ids", (), {}),
        ("push_messages", (["m"],), {}),
        ("pull_messages", (["m"],), {}),
        ("send_and_receive", (["m"],), {"timeout": 3.0}),
        ("set_run", ("run",), {}),
    ],
)
def test_a_call_reaches_the_grid_behind_with_all_it_was_given(name: str, args: Any, options: dict[str, Any]) -> None:
    behind = Listening()
    result = getattr(ForwardingGrid(behind), name)(*args, **options)  # type: ignore[arg-type]
    assert behind.calls == [(name, (args, options))]
    assert result == (None if name == "set_run" else f"result of {name}")


def test_what_a_grid_knows_is_known_through_any_number_of_others() -> None:
    outer = ForwardingGrid(ForwardingGrid(Listening()))  # type: ignore[arg-type]
    assert outer.closed is True
    assert outer.work_s == {"m": 1.5}
    assert outer.run == "the run"


def test_a_grid_that_says_nothing_of_itself_is_open() -> None:
    assert ForwardingGrid(object()).closed is False  # type: ignore[arg-type]
    assert ForwardingGrid(object()).work_s == {}  # type: ignore[arg-type]


def test_messages_are_made_as_flower_makes_them() -> None:
    become_task()
    made = ForwardingGrid(object()).create_message(RecordDict(), "query.x", 7, "g", ttl=5.0)  # type: ignore[arg-type]
    assert isinstance(made, Message)
    assert (made.metadata.dst_node_id, made.metadata.message_type, made.metadata.ttl) == (7, "query.x", 5.0)


def test_nothing_that_flower_asks_of_a_grid_is_forgotten() -> None:
    abstract = {name for name, member in inspect.getmembers(Grid) if getattr(member, "__isabstractmethod__", False)}
    assert abstract <= set(vars(ForwardingGrid))
