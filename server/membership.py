"""Who is in: asks the nodes who they are and which plan they approved, at the start of a run and again when it matters."""

from __future__ import annotations

from collections.abc import Callable, Collection

from flwr.app import ConfigRecord, Message, RecordDict

from fedslm.errors import TooFewHospitalsError
from fedslm.flower.records import CONFIG, JOIN, ErrorCode, error_name
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer
from server.exchange import Exchange

MISSING = "NO_ANSWER"

Invite = Callable[[int, str], RecordDict]
"""Makes a node's invitation from its id and the hospital that it was last, "" where that is unknown."""

Check = Callable[[int, str, Message], str]
"""Looks at the rest of a node's reply, which gives a hospital's name; returns "" or the code it is refused with."""


def require(plan: Plan, count: int, verb: str) -> None:
    """Stops a run that has fewer hospitals than its plan requires.

    Raises:
      TooFewHospitalsError: `count` is below `min_cohort`.
    """
    if count < plan.min_cohort:
        raise TooFewHospitalsError(
            f"{count} of {len(plan.hospitals)} hospitals {verb}, the plan needs {plan.min_cohort}; "
            "see who dropped out above, and their own logs for why."
        )


class Membership:
    """The nodes that stand for the plan's hospitals.

    Guarantees:
      Never two nodes under one name; a node that goes away frees its name and is asked again when it is back: a hospital
      may have corrected its site file. A node that is slow or not in the plan holds nobody up.
      A node whose name was taken is asked again when the name is free and whoever had it does not take it back, so that
      nobody who came first under a false name keeps the hospital out for good.

    Attributes:
      hospital_of: node -> hospital.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        plan: Plan,
        invite: Invite,
        announcer: Announcer,
        check: Check = lambda node_id, name, reply: "",
    ) -> None:
        """Asks nobody yet; `invite` and `check` are called once for every node that is asked, and once for its answer."""
        self.hospital_of: dict[int, str] = {}
        self._exchange = exchange
        self._plan = plan
        self._invitation = invite
        self._announcer = announcer
        self._check = check
        self._asked: set[int] = set()
        self._waiting: dict[str, int] = {}
        self._rivals: dict[int, str] = {}  # node -> the name that it gave and another node had
        self._holder: dict[str, int] = {}  # name -> the node that has it, or had it last and is not silent

    def join(self, *, timeout_s: float) -> None:
        """Waits until all the plan's hospitals are in or time is up.

        Raises:
          TooFewHospitalsError: fewer than `min_cohort` joined.
        """
        self._gather(timeout_s, is_done=lambda: len(self.hospital_of) == len(self._plan.hospitals))
        require(self._plan, len(self.hospital_of), "joined")

    def renew(self, hospitals: Collection[str], *, patience_s: float, timeout_s: float) -> None:
        """Asks those hospitals again, and every node that is new or was silent; does not wait for nodes to come.

        It does wait for them where fewer than `min_cohort` hospitals would be left.

        Args:
          patience_s: a node that has not answered by then is left out.
          timeout_s: for the cohort.
        """
        for node in [node for node, name in self.hospital_of.items() if name in hospitals]:
            del self.hospital_of[node]
            self._asked.discard(node)
        patient_until = self._exchange.clock() + patience_s

        def is_done() -> bool:
            waits = bool(self._waiting) and self._exchange.clock() < patient_until
            return not waits and len(self.hospital_of) >= self._plan.min_cohort

        self._gather(timeout_s, is_done=is_done)

    @property
    def node_of(self) -> dict[str, int]:
        """Hospital -> node, in the plan's order of hospitals."""
        nodes = {name: node for node, name in self.hospital_of.items()}
        return {name: nodes[name] for name in self._plan.names if name in nodes}

    def _gather(self, timeout_s: float, *, is_done: Callable[[], bool]) -> None:
        deadline = self._exchange.clock() + timeout_s
        self._invite(timeout_s)
        while not is_done() and (left_s := deadline - self._exchange.clock()) > 0:
            replies = self._exchange.pull(self._waiting)
            for node_id, reply in replies:
                self._admit(node_id, reply)
            self._exchange.pause(nothing_came=not replies)
            self._invite(left_s)
            if not self._waiting and self._nobody_else_comes():
                break
        for node_id in self._waiting.values():
            self._admit(node_id, None)
        self._asked -= set(self._waiting.values())  # it may answer the next time
        self._waiting.clear()

    def _invite(self, ttl_s: float) -> None:
        online = set(self._exchange.grid.get_node_ids())
        self.hospital_of = {node: name for node, name in self.hospital_of.items() if node in online}
        self._asked -= self._heirs(online)
        new = sorted(online - self._asked)
        for node in new:
            self._rivals.pop(node, None)
        names = {node: name for name, node in self._holder.items()}
        messages = [Message(self._invitation(node, names.get(node, "")), node, JOIN) for node in new]
        sent, lost = self._exchange.push(messages, ttl_s=ttl_s)
        self._waiting |= sent
        self._asked = online.difference(lost)

    def _heirs(self, online: set[int]) -> set[int]:
        """Nodes to ask again: the name that they gave is free, and whoever had it last does not take it back."""
        return {node for node, name in self._rivals.items() if self._is_free(name, online)}

    def _is_free(self, name: str, online: set[int]) -> bool:
        if name in self.hospital_of.values():
            return False
        holder = self._holder.get(name)
        # It goes before others while it is there and its answer is out, or it is about to be asked.
        goes_first = holder in self._waiting.values() or holder not in self._asked
        return not (holder in online and goes_first)

    def _nobody_else_comes(self) -> bool:
        # A simulation has the plan's nodes and no others; waiting for one that refused would be waiting for nothing.
        return self._exchange.is_closed and len(self._asked) >= len(self._plan.hospitals)

    def _admit(self, node_id: int, reply: Message | None) -> None:
        """Enters a node under the name it gives, if the plan has that name, it is free, and the plans are the same."""
        if reply is None:
            code = MISSING
            self._holder = {name: node for name, node in self._holder.items() if node != node_id}
        else:
            code = error_name(reply) if reply.has_error() else self._claim(node_id, reply)
        if code:
            self._announcer.emit("hospital_refused", hospital=f"node {node_id}", code=code)

    def _claim(self, node_id: int, reply: Message) -> str:
        """Enters the node and returns nothing, or returns why not."""
        if not reply.has_content():
            return ErrorCode.MALFORMED.name
        config = reply.content.config_records.get(CONFIG, ConfigRecord())
        name, sha256 = str(config.get("hospital")), config.get("plan-sha256")
        if name not in self._plan.names or sha256 != self._plan.sha256:
            return "NOT_IN_PLAN"
        if name in self.hospital_of.values():
            if self.hospital_of.get(node_id) == name:
                return ""
            self._rivals[node_id] = name
            return "NAME_TAKEN"
        code = self._check(node_id, name, reply)
        if not code:
            self.hospital_of[node_id] = name
            self._holder[name] = node_id
            self._announcer.emit("hospital_joined", hospital=name)
        return code
