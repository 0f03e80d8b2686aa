"""`LocalGrid`: a Flower `Grid` whose nodes are function calls in this process.

Every node has its own `Context` that lives as long as the grid. Messages are copied on the way in, as on a network: a
client that changes what it received changes nothing for the others.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedslm.flower.compat import CLIENT_APP_RAISED, Run, become_task, set_message_id


class LocalGrid(Grid):
    """Nodes 1..n around one ClientApp, run one after the other while replies are pulled.

    Attributes:
      one_at_a_time: tells the server that a reply's time is its own work, not a wait for others.
      closed: tells the server that no node comes later.
    """

    one_at_a_time = True
    closed = True

    def __init__(
        self,
        app: ClientApp,
        node_configs: Sequence[dict[str, Any]],
        *,
        is_dropped: Callable[[int, Message], bool] = lambda node_id, message: False,
    ) -> None:
        """Starts the nodes.

        Args:
          node_configs: one a node, as `--node-config` gives it in a deployment.
          is_dropped: for fault tests: says whether a node never answers a message.
        """
        become_task()
        self._app = app
        self._is_dropped = is_dropped
        self._contexts = {
            number: Context(run_id=1, node_id=number, node_config=dict(config), state=RecordDict(), run_config={})
            for number, config in enumerate(node_configs, start=1)
        }
        self._pending: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    def get_node_ids(self) -> list[int]:
        """All nodes, in order."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queues messages; nothing runs yet."""
        identities = []
        for message in messages:
            set_message_id(message, f"local-{next(self._numbers)}")
            self._pending[message.metadata.message_id] = message
            identities.append(message.metadata.message_id)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Runs the client for the first of the messages that is still queued, and returns its reply."""
        for identity in message_ids:
            message = self._pending.pop(identity, None)
            if message is not None and not self._is_dropped(message.metadata.dst_node_id, message):
                return [self._run_client(message)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Runs every client to its end; `timeout` has no meaning in one process."""
        return [reply for identity in self.push_messages(messages) for reply in self.pull_messages([identity])]

    def _run_client(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        received = copy.deepcopy(message)
        try:
            return self._app(received, context)
        except Exception as error:
            # As Flower's own runtimes do; FedSLM's app never lets one through, an app under test may.
            return Message(Error(CLIENT_APP_RAISED, type(error).__name__), reply_to=received)

    def set_run(self, run: Run) -> None:
        """There is one run only; nothing to set."""

    @property
    def run(self) -> Run:
        """A run with Flower's defaults."""
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Makes a message as Flower 1.41 does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
