"""`SecureGrid`: a Flower `Grid` that hands a strategy one reply a round, the mean of updates that nobody could read.

It takes the place of `ClearGrid`, or of any grid in Flower's own `strategy.start`. A round may take several sessions: one
that loses too many hospitals is over for good, and the next has new keys, new noise, and its own price.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedslm.errors import ConfigError, ProtocolError, ShareError, ThresholdError, TooFewHospitalsError
from fedslm.flower.grids import ForwardingGrid
from fedslm.flower.records import (
    ARRAYS,
    CONFIG,
    TRAIN,
    NamedArrays,
    adapter_sha256,
    as_float32,
    from_array_record,
    from_vector,
    protocol_code,
    to_array_record,
)
from fedslm.privacy.scores import Accuracy, read_accuracy
from fedslm.reporting.events import Announcer
from fedslm.secagg.encoding import Ring
from fedslm.secagg.terms import Terms
from server.aggregate import Aggregate, AggregateFile
from server.charter import Charter
from server.exchange import Exchange
from server.interrupts import interrupts_wait
from server.preparation import Attempt, Preparation, Ready, Task
from server.receipts import ReceiptFile
from server.secure_session import FALSE_SHARES, Deadlines, SecureSession
from server.sessions import Counter, is_used_up, require_session
from server.strategies import WEIGHT

STOCK_WEIGHT = "num-examples"
"""By what Flower's strategies weigh unless told otherwise. With one reply a round any weight gives the same."""

TOO_FEW = "TOO_FEW"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mean:
    """What a session came to: the weighted mean of the survivors' updates, float32, shape [d], and their scores together."""

    survivors: tuple[str, ...]
    weight: float
    values: NDArray[np.float32]
    accuracy: Accuracy | None


class SecureGrid(ForwardingGrid):
    """Wraps any Flower grid.

    Guarantees:
      The reply holds the global adapter plus the weighted mean of the survivors' updates, and the sum of their weights.
      A session's number is counted before its first message leaves, and a sum is on the disk before anybody hears of it.
      None is counted for adverts that make no session.
      A hospital's receipt is on the disk before anybody gets its shares; whoever's ledger is in doubt is in no session.
      A session that fails changes nothing but the count. `survivors` names who is in the last sum.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        charter: Charter,
        frozen: NamedArrays,
        announcer: Announcer,
        counter: Counter,
        aggregates: AggregateFile,
        receipts: ReceiptFile,
        finished: int = 0,
        poll_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wraps `grid`; nothing is sent before `join`.

        Args:
          frozen: the adapter's frozen arrays, sent beside the trained ones.
          aggregates: where the newest sum is kept.
          receipts: where hospitals' receipts are kept.
          finished: sessions up to the last whole round; later ones that `counter` knows were attempts at the next.
          poll_s: pause between two looks for replies.
        """
        super().__init__(grid)
        self._exchange = Exchange(grid, poll_s=poll_s, clock=clock)
        self._charter, self._plan = charter, charter.plan
        self._frozen = to_array_record(frozen)
        self._announcer = announcer
        self._counter = counter
        self._aggregates = aggregates
        self._receipts = receipts
        self._finished = finished
        self._preparation = Preparation(self._exchange, charter=charter, frozen=self._frozen, announcer=announcer)
        self.survivors: tuple[str, ...] = ()

    @property
    def sessions(self) -> int:
        """Sessions started in this run so far, finished or not."""
        return self._counter.started

    def join(self, *, timeout_s: float) -> None:
        """Waits until all the plan's hospitals are in, each with an advert, or time is up.

        Raises:
          TooFewHospitalsError: fewer than `min_cohort` joined.
        """
        self._preparation.join(timeout_s=timeout_s)

    def get_node_ids(self) -> list[int]:
        """The nodes that joined, in the plan's order of hospitals."""
        return list(self._preparation.node_of.values())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Runs one round, in as many sessions as it takes and the plan has beyond one for every round to come.

        Returns:
          One reply, or none where there was no message.
        Raises:
          TooFewHospitalsError: too few hospitals are there, or no session of the round got through; names the missing.
          BudgetExceededError: earlier attempts left no session for this one.
          ConfigError: the messages are no training messages of one round.
        """
        sent = list(messages)
        if not sent:
            return []
        task = self._read(sent, timeout or self._plan.deadline_s)
        aggregate = self._kept(task) or self._attempted(task)
        self.survivors = aggregate.survivors
        self._tell_accuracy(task, aggregate)
        self._finished = self._counter.started
        self._preparation.end_round()
        return [_reply(task, aggregate)]

    def _read(self, sent: list[Message], timeout_s: float) -> Task:
        first, nodes = sent[0], {message.metadata.dst_node_id for message in sent}
        config = first.content.config_records.get(CONFIG, ConfigRecord())
        arrays, number = first.content.array_records.get(ARRAYS), config.get("server-round")
        if first.metadata.message_type != TRAIN or not isinstance(number, int) or arrays is None:
            raise ConfigError(
                f"A message of type '{first.metadata.message_type}' cannot be aggregated securely; only training can, with "
                f"the records '{ARRAYS}' and '{CONFIG}'. Set the strategy's fraction_evaluate=0."
            )
        arrays = as_float32(arrays)
        trained = from_array_record(arrays)
        self._require_size(sum(array.size for array in trained.values()))
        return Task(
            number=number,
            arrays=arrays,
            config=config,
            start_sha256=adapter_sha256(trained, from_array_record(self._frozen)),
            excluded=frozenset(name for name, node in self._preparation.node_of.items() if node not in nodes),
            timeout_s=timeout_s,
            request=first,
        )

    def _require_size(self, found: int) -> None:
        planned = self._plan.adapter.trained_parameters
        if found != planned:
            raise ConfigError(f"The adapter to train has {found} parameters, the plan says {planned}; use the plan's.")

    def _kept(self, task: Task) -> Aggregate | None:
        """The sum of a session whose checkpoint was never written."""
        kept = self._aggregates.load()
        if kept is None or (kept.round, kept.adapter_sha256) != (task.number, task.start_sha256.hex()):
            return None
        return kept if kept.fits({name: tuple(array.shape) for name, array in task.arrays.items()}) else None

    def _attempted(self, task: Task) -> Aggregate:
        """Tries until a session gets through, or the next one would be missing for a round to come.

        What is left then is enough to finish the run once the operator has mended what a session cannot.
        """
        require_session(self._plan, self._counter)
        attempt = 0
        while True:
            ready, missing = self._prepared(task, attempt), dict[str, str]()
            session = self._counter.start()
            try:
                return self._session(task, ready, missing)
            except (ThresholdError, ProtocolError) as error:
                failure = error
                fields = {"session": session, "code": _code(error), "missing": sorted(missing)}
                self._announcer.emit("session_failed", round=task.number, **fields)
            attempt += 1
            if self._counter.started >= self._plan.privacy.max_sessions - self._rounds_after(task):
                raise self._lost(task, missing, failure, tries=attempt)

    def _rounds_after(self, task: Task) -> int:
        return max(0, self._plan.training.rounds - task.number)

    def _lost(self, task: Task, missing: dict[str, str], failure: Exception, *, tries: int) -> TooFewHospitalsError:
        is_short = bool(missing) and isinstance(failure, ThresholdError)
        verb = "lost too many hospitals" if is_short else "came to no sum"
        names = ", ".join(f"{name} ({why})" for name, why in sorted(missing.items()))
        what = names if is_short else "; ".join(filter(None, (str(failure).rstrip("."), names)))
        used_up = is_used_up(self._plan, self._counter)
        rest = (
            "the plan has no session left"
            if used_up
            else "resume when they are back"
            if is_short
            else "resume when that is mended"
        )
        sessions = "1 session" if tries == 1 else f"{tries} sessions"
        return TooFewHospitalsError(
            f"Round {task.number} {verb} in {sessions}, in the last one: {what}; the model is unchanged, the hospitals' own "
            f"logs say why, {rest}."
        )

    def _prepared(self, task: Task, number: int) -> Ready:
        session = self._counter.started + 1
        attempt = Attempt(session=session, number=number, earlier=range(self._finished + 1, session))
        return self._preparation.prepare(task, attempt)

    def _session(self, task: Task, ready: Ready, missing: dict[str, str]) -> Aggregate:
        numbers = {"round": task.number, "session": ready.terms.session, "attempt": ready.attempt}
        self._announcer.emit("session_started", **numbers, hospitals=list(ready.node_of))
        running = SecureSession(
            self._exchange,
            ready.coordinator,
            terms=ready.terms,
            node_of=ready.node_of,
            charter=self._charter,
            deadlines=Deadlines(train_s=task.timeout_s, step_s=ready.step_s),
            receipts=self._receipts,
            announcer=self._announcer,
        )
        try:
            running.gather(ready.training)
            with interrupts_wait():  # once hospitals reveal their shares, this sum is to be had now or never
                mean = self._mean(ready.terms, running.reveal(), ready.coordinator.survivors)
                aggregate = self._save(task, mean)
            running.report_liars()
        finally:
            missing.update(running.missing)
            self._preparation.end_session(ready, missing=running.missing, next_adverts=running.next_adverts.values())
        return aggregate

    def _mean(self, terms: Terms, total: Ring, points: tuple[int, ...]) -> _Mean:
        inside = {terms.names[point - 1] for point in points}
        survivors = tuple(name for name in self._plan.names if name in inside)
        weight = sum(self._plan.hospital(name).weight for name in survivors)
        values = terms.fixed_point.decode(total, count=len(points), divisor=weight)
        length = self._plan.adapter.trained_parameters
        accuracy = self._accuracy(terms, values[length:] * weight, hospitals=len(points))  # no weight was put on scores
        return _Mean(survivors=survivors, weight=weight, values=values[:length], accuracy=accuracy)

    def _accuracy(self, terms: Terms, sums: NDArray[np.float32], *, hospitals: int) -> Accuracy | None:
        if self._plan.privacy.scores is None:
            return None
        step = terms.fixed_point.blocks[-1].value_range / terms.fixed_point.half
        return read_accuracy(sums, self._plan, hospitals=hospitals, step=step)

    def _tell_accuracy(self, task: Task, aggregate: Aggregate) -> None:
        """Announces what was scored: the adapter that this round started from."""
        found = aggregate.accuracy
        if found is not None:
            fields = {"accuracy": found.value, "stddev": found.stddev}
            self._announcer.emit("held_out_scored", round=task.number - 1, **fields)

    def _save(self, task: Task, mean: _Mean) -> Aggregate:
        """Makes the mean the next adapter, in place, and puts it on the disk."""
        arrays = from_vector(mean.values, {name: tuple(array.shape) for name, array in task.arrays.items()})
        for name, trained in from_array_record(task.arrays).items():
            arrays[name] += trained
        aggregate = Aggregate(
            round=task.number,
            adapter_sha256=task.start_sha256.hex(),
            survivors=mean.survivors,
            weight=mean.weight,
            arrays=arrays,
            accuracy=mean.accuracy,
        )
        self._aggregates.save(aggregate)
        return aggregate


def _code(error: ThresholdError | ProtocolError) -> str:
    if isinstance(error, ThresholdError):
        return TOO_FEW
    return FALSE_SHARES if isinstance(error, ShareError) else protocol_code(error).name


def _reply(task: Task, aggregate: Aggregate) -> Message:
    """The one reply of a round; arrays in the order in which they came: FedAvgM pairs them by position."""
    arrays = to_array_record({name: aggregate.arrays[name] for name in task.arrays})
    weights = MetricRecord({WEIGHT: aggregate.weight, STOCK_WEIGHT: aggregate.weight})
    return Message(RecordDict({ARRAYS: arrays, "metrics": weights}), reply_to=task.request)
