"""One exchange with many hospitals: push, then pull until everybody answered, enough did, or the deadline passed.

Flower's own `send_and_receive` sleeps three seconds between polls, and its error replies do not name the node: here a
map from message to node is kept, so that every answer, good or bad, has a sender.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

GRACE_S = 5.0
"""Once enough have answered, the others have as long again as that took, and at least this."""

AT_ONCE = 2
"""Large replies that are asked for together: one more than is needed, for the sake of a second core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One node's part in an exchange.

    Attributes:
      reply: None where the deadline passed without one, or the message could not be sent.
      seconds: until it came; on one machine, how long the node itself worked.
    """

    node_id: int
    reply: Message | None
    seconds: float


class Exchange:
    """Sends messages over a grid and collects what comes back.

    Guarantees:
      Exactly one answer a message. A reply that comes after its answer was given up is never delivered.
    """

    def __init__(self, grid: Grid, *, poll_s: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes a grid.

        Args:
          poll_s: pause between two looks for replies.
        """
        self.grid = grid
        self.clock = clock
        self._poll_s = poll_s

    def run(
        self,
        messages: Iterable[Message],
        *,
        timeout_s: float,
        is_large: bool = False,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Answer]:
        """Yields one answer a message: replies as they arrive, missing ones at the end.

        Args:
          timeout_s: how long to wait; every message lives as long, so that a hospital which comes back later does not
            work for a step that is over.
          is_large: sends one message at a time, each made when it is its turn, and asks for two replies at a time, so that
            memory does not grow with the number of hospitals.
          is_enough: after it says so, only a grace is left to the others. Not asked on a closed grid, where hospitals
            wait for each other and a slow machine would make dropouts of them.
        """
        waiting, lost = self.push(messages, ttl_s=timeout_s, is_large=is_large)
        started = self.clock()
        for node_id in lost:
            yield Answer(node_id=node_id, reply=None, seconds=0.0)
        ends_at = started + timeout_s
        while waiting and (now := self.clock()) < ends_at:
            if is_enough() and not self.is_closed:
                ends_at = min(ends_at, now + max(GRACE_S, now - started))  # the first time this holds counts
            yield from self._look(waiting, started, is_large=is_large)
        for node_id in waiting.values():
            yield Answer(node_id=node_id, reply=None, seconds=self.clock() - started)

    def push(
        self, messages: Iterable[Message], *, ttl_s: float, is_large: bool = False
    ) -> tuple[dict[str, int], list[int]]:
        """Sends messages.

        Returns:
          Message id -> node, of those that could be sent, and the nodes of those that could not.
        """
        destinations: list[tuple[str, int]] = []
        pushed: set[str] = set()
        for batch in ([message] for message in messages) if is_large else [list(messages)]:
            for message in batch:
                message.metadata.ttl = ttl_s
            pushed.update(self.grid.push_messages(batch) if batch else ())
            # The grid fills in each message's id while it pushes; an error reply names only that, not its node.
            destinations += [(message.metadata.message_id, message.metadata.dst_node_id) for message in batch]
        sent = {identity: node for identity, node in destinations if identity in pushed}
        return sent, [node for identity, node in destinations if identity not in pushed]

    def pull(self, waiting: dict[str, int]) -> list[tuple[int, Message]]:
        """Takes the replies that have arrived, each with its node, and crosses them off `waiting`."""
        return self._take(waiting, list(waiting))

    def pause(self, *, nothing_came: bool) -> None:
        """Waits before the next look, unless the last one brought something."""
        time.sleep(self._poll_s if nothing_came else 0)

    def _look(self, waiting: dict[str, int], started: float, *, is_large: bool) -> Iterator[Answer]:
        """Yields what has come, after one look at every message that is out."""
        came = False
        identities, size = list(waiting), AT_ONCE if is_large else max(1, len(waiting))
        for wanted in (identities[start : start + size] for start in range(0, len(identities), size)):
            replies = self._take(waiting, wanted)
            came = came or bool(replies)
            while replies:  # popped, so that a large reply is gone before the next one is fetched
                node_id, reply = replies.pop(0)
                seconds = self._work_s.get(reply.metadata.reply_to_message_id, self.clock() - started)
                answer = Answer(node_id=node_id, reply=reply, seconds=seconds)
                del reply
                yield answer
                del answer
        self.pause(nothing_came=not came and bool(waiting))

    def _take(self, waiting: dict[str, int], wanted: list[str]) -> list[tuple[int, Message]]:
        replies = list(self.grid.pull_messages(wanted)) if wanted else []
        return [
            (waiting.pop(identity), reply)
            for reply in replies
            if (identity := reply.metadata.reply_to_message_id) in waiting
        ]

    @property
    def is_closed(self) -> bool:
        """True where all nodes share one machine, so that hospitals wait for each other: in a simulation."""
        return bool(getattr(self.grid, "closed", False))

    @property
    def _work_s(self) -> Mapping[str, float]:
        # On one machine hospitals wait for each other; an in-process grid knows how long each one worked itself.
        return getattr(self.grid, "work_s", {})
