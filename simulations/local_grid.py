"""`LocalGrid`: a Flower `Grid` whose nodes are function calls in this process.

Every node has its own `Context` that lives as long as the grid. Messages are copied on the way in, as on a network: a
client that changes what it received changes nothing for the others.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedslm.flower.compat import CLIENT_APP_RAISED, Run, become_task, set_message_id

PATIENCE_S = 1.0


class LocalGrid(Grid):
    """Nodes 1..n around one ClientApp, run by a few threads while replies are pulled. A context manager.

    Attributes:
      closed: tells the server that no node comes later.
      work_s: message id -> seconds its client worked, without the wait for a free thread.
    """

    closed = True

    def __init__(
        self,
        app: ClientApp,
        node_configs: Sequence[dict[str, Any]],
        *,
        parallel: int = 1,
        is_dropped: Callable[[int, Message], bool] = lambda node_id, message: False,
    ) -> None:
        """Starts the nodes.

        Args:
          node_configs: one a node, as `--node-config` gives it in a deployment.
          parallel: clients that work at the same time.
          is_dropped: for fault tests: says whether a node never answers a message.
        """
        become_task()
        self._app = app
        self._is_dropped = is_dropped
        self._contexts = {
            number: Context(run_id=1, node_id=number, node_config=dict(config), state=RecordDict(), run_config={})
            for number, config in enumerate(node_configs, start=1)
        }
        self._queued: dict[str, Message] = {}
        self._running: dict[str, Future[Message]] = {}
        self._numbers = itertools.count(1)
        self._pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="hospital")
        self.work_s: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops what has not started, and waits for the clients at work.

        One that went on would write into its hospital's state while a resumed run uses it.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get_node_ids(self) -> list[int]:
        """All nodes, in order."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queues messages; nothing runs yet."""
        identities = []
        for message in messages:
            set_message_id(message, f"local-{next(self._numbers)}")
            self._queued[message.metadata.message_id] = message
            identities.append(message.metadata.message_id)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Sets the clients to work that are still queued, and returns the replies that came within a second."""
        wanted = list(message_ids)
        for identity in wanted:
            message = self._queued.pop(identity, None)
            if message is not None and not self._is_dropped(message.metadata.dst_node_id, message):
                self._running[identity] = self._pool.submit(self._run_client, message)
        mine = [identity for identity in wanted if identity in self._running]
        wait([self._running[identity] for identity in mine], timeout=PATIENCE_S, return_when=FIRST_COMPLETED)
        return [self._running.pop(identity).result() for identity in mine if self._running[identity].done()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Runs every client to its end, replies in the order asked; `timeout` has no meaning in one process."""
        waiting = self.push_messages(messages)
        replies = self.pull_messages(waiting)
        while any(identity in self._running for identity in waiting):
            replies += self.pull_messages(waiting)
        return sorted(replies, key=lambda reply: waiting.index(reply.metadata.reply_to_message_id))

    def _run_client(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        received = copy.deepcopy(message)
        started = time.monotonic()
        try:
            return self._app(received, context)
        except Exception as error:
            # As Flower's own runtimes do; FedSLM's app never lets one through, an app under test may.
            return Message(Error(CLIENT_APP_RAISED, type(error).__name__), reply_to=received)
        finally:
            self.work_s[message.metadata.message_id] = time.monotonic() - started

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
