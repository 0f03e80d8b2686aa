"""`ForwardingGrid`: a Flower `Grid` around another one, written down once for all that change only a part of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedslm.flower.compat import Run


class ForwardingGrid(Grid):
    """Passes every call on; whoever derives from it overrides what it is about. Flower asks for a subclass of `Grid`."""

    def __init__(self, grid: Grid) -> None:
        """Wraps `grid`."""
        self._wrapped = grid

    @property
    def _grid(self) -> Grid:
        """The grid that calls go to."""
        return self._wrapped

    @property
    def closed(self) -> bool:
        """True where no other nodes come than the plan's, and hospitals share one machine: in a simulation."""
        return bool(getattr(self._grid, "closed", False))

    @property
    def work_s(self) -> Mapping[str, float]:
        """Message id -> seconds its client worked, where the grid knows: on one machine hospitals wait for each other."""
        return getattr(self._grid, "work_s", {})

    def set_run(self, run: Run) -> None:
        """Passed on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Passed on."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Makes a message as Flower 1.41 does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Passed on."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Passed on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Passed on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Passed on."""
        return self._grid.send_and_receive(messages, timeout=timeout)
