"""What must be there before a session begins: hospitals that are in, an unused advert of each, and terms made of those.

A hospital whose advert is behind what it signed before is asked about that first. No session is counted here.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedslm.errors import AdvertError, LedgerError, ProtocolError, TooFewHospitalsError
from fedslm.flower.records import (
    ARRAYS,
    CONFIG,
    FROZEN,
    SECAGG,
    TRAIN,
    ErrorCode,
    config_sha256,
    put_secagg,
)
from fedslm.flower.sessions import session_terms
from fedslm.reporting.events import Announcer
from fedslm.secagg.coordinator import Coordinator
from fedslm.secagg.messages import Advert, Opening
from fedslm.secagg.terms import Terms
from fedslm.secagg.wire import encode
from server.aborts import Aborts
from server.adverts import Adverts
from server.charter import Charter
from server.exchange import Exchange
from server.heads import Heads
from server.membership import Membership

COHORT_TIMEOUT_S = 300.0
"""How long a session that would have too few hospitals waits for some to come back before it starts."""

PREPARATIONS = 2
"""How often a session is made of new adverts before the round is given up; each asks every hospital for one."""

QUESTIONS = 2
"""How often hospitals are asked again about heads that came to light, before a session begins without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The round that a strategy asked for.

    Attributes:
      start_sha256: of the whole global adapter that it starts from.
      excluded: hospitals that joined and were not addressed.
      request: one of the strategy's messages, to answer to.
    """

    number: int
    arrays: ArrayRecord
    config: ConfigRecord
    start_sha256: bytes
    excluded: frozenset[str]
    timeout_s: float
    request: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Which attempt at a round it is.

    Attributes:
      session: the number that the session will have.
      number: counts from 0 in this process: a simulation that is resumed draws what an unbroken one would have.
      earlier: the sessions of the round before it, those of other processes included.
    """

    session: int
    number: int
    earlier: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A session that can begin. Its number is not counted yet, nothing was sent.

    Attributes:
      node_of: hospital -> node, ascending by name.
      training: content of the training message.
      step_s: how long to wait in each step after the training.
    """

    terms: Terms
    attempt: int
    node_of: dict[str, int]
    training: RecordDict
    coordinator: Coordinator
    step_s: float


class Preparation:
    """Gathers hospitals and adverts, and makes sessions of them."""

    def __init__(self, exchange: Exchange, *, charter: Charter, frozen: ArrayRecord, announcer: Announcer) -> None:
        """Asks nobody before `join`; `frozen` are the adapter's frozen arrays."""
        self._exchange = exchange
        self._charter, self._plan = charter, charter.plan
        self._frozen = frozen
        self._announcer = announcer
        self._heads = Heads(charter)
        self._adverts = Adverts(charter, self._heads)
        self._aborts = Aborts(exchange, config=charter.config())
        self._members = Membership(
            exchange, plan=self._plan, invite=self._invitation, announcer=announcer, check=self._adverts.check
        )

    def join(self, *, timeout_s: float) -> None:
        """Waits until all the plan's hospitals are in, each with an advert, or time is up.

        Raises:
          TooFewHospitalsError: fewer than `min_cohort` joined.
        """
        self._members.join(timeout_s=timeout_s)

    @property
    def node_of(self) -> dict[str, int]:
        """The hospitals that are in, in the plan's order, each with its node."""
        return self._members.node_of

    def prepare(self, task: Task, attempt: Attempt) -> Ready:
        """Makes a session of the hospitals' adverts; where they do not make one, all of them are asked for others.

        Raises:
          TooFewHospitalsError: fewer than `min_cohort` can take part, or what they sent makes no session; names them.
        """
        for _ in range(PREPARATIONS):
            nodes = self._gathered(task)
            try:
                return self._ready(task, attempt, nodes)
            except ProtocolError as error:
                self._adverts.drop(nodes)
                failure = TooFewHospitalsError(
                    f"No session of round {task.number} can begin with {', '.join(nodes)}: {str(error).rstrip('.')}; the "
                    "model is unchanged and no session was counted, resume when that is mended."
                )
        raise failure

    def end_session(self, ready: Ready, *, missing: Iterable[str], next_adverts: Iterable[Advert]) -> None:
        """Notes who has an advert for another session.

        Args:
          missing: who dropped out; whoever did may have lost its key.
          next_adverts: those that came with the shares, verified.
        """
        self._adverts.drop(ready.node_of)
        for advert in next_adverts:
            with suppress(AdvertError, LedgerError):  # its hospital is asked for another
                self._adverts.keep(advert)
        self._adverts.drop(missing)

    def end_round(self) -> None:
        """Forgets what only the sessions of one round need."""
        self._aborts.forget()

    def _invitation(self, node_id: int, name: str) -> RecordDict:
        letter = put_secagg(encode(self._heads.invitation(node_id, name)))
        return RecordDict({CONFIG: self._charter.config(), SECAGG: letter})

    def _gathered(self, task: Task) -> dict[str, int]:
        """Sees to it that hospitals have adverts that nobody doubts; returns who can take part, ascending by name.

        Raises:
          TooFewHospitalsError: fewer than `min_cohort` can.
        """
        self._renew()
        for _ in range(QUESTIONS):
            if not (doubted := self._adverts.doubted()):
                break
            self._adverts.drop(doubted)
            self._renew()
        self._leave_out_doubted()
        nodes = self._members.node_of
        ready = {name: nodes[name] for name in sorted(nodes) if name in self._adverts and name not in task.excluded}
        if len(ready) < self._plan.min_cohort:
            absent = ", ".join(name for name in self._plan.names if name not in ready)
            raise TooFewHospitalsError(
                f"{len(ready)} of {len(self._plan.hospitals)} hospitals can take part in round {task.number}, the plan needs "
                f"{self._plan.min_cohort}; missing: {absent}. The model is unchanged."
            )
        return ready

    def _renew(self) -> None:
        """Asks hospitals without an advert for one, and everybody who is new or was silent."""
        without = [name for name in self._plan.names if name not in self._adverts]
        patience_s = self._patience_s(len(without))
        self._members.renew(without, patience_s=patience_s, timeout_s=max(patience_s, COHORT_TIMEOUT_S))

    def _leave_out_doubted(self) -> None:
        doubted = self._adverts.doubted()
        self._adverts.drop(doubted)
        for name in doubted:
            self._announcer.emit("hospital_refused", hospital=name, code=ErrorCode.LEDGER_REFUSED.name)

    def _patience_s(self, hospitals: int) -> float:
        # On one machine hospitals wait for each other.
        share = max(1, hospitals) if self._exchange.is_closed else 1
        return self._charter.secagg.step_deadline_s * share

    def _ready(self, task: Task, attempt: Attempt, nodes: dict[str, int]) -> Ready:
        opening = self._opening(task, attempt, nodes)
        training = self._training(task, opening)
        terms = session_terms(
            self._plan,
            opening,
            roster_sha256=self._charter.roster_sha256,
            adapter_sha256=task.start_sha256,
            config_sha256=config_sha256(Message(training, 0, TRAIN)),
        )
        return Ready(
            terms=terms,
            attempt=attempt.number,
            node_of=nodes,
            training=training,
            coordinator=Coordinator(terms, keys=self._charter.keys),
            step_s=self._patience_s(len(nodes)),
        )

    def _opening(self, task: Task, attempt: Attempt, nodes: Iterable[str]) -> Opening:
        if self._plan.privacy.mode == "none":
            everybody = self._members.node_of
            self._aborts.collect(attempt.earlier, everybody, timeout_s=self._patience_s(len(everybody)))
        return Opening(
            session=attempt.session,
            round=task.number,
            attempt=attempt.number,
            adverts=tuple(encode(self._adverts[name]) for name in nodes),
            aborts=self._aborts.listed(),
        )

    def _training(self, task: Task, opening: Opening) -> RecordDict:
        # A config of its own: a strategy hands in the same one every round.
        numbers = {"server-round": task.number, "session": opening.session, "attempt": opening.attempt}
        config = ConfigRecord({**task.config, **self._charter.config(), **numbers})
        return RecordDict(
            {ARRAYS: task.arrays, FROZEN: self._frozen, CONFIG: config, SECAGG: put_secagg(encode(opening))}
        )
