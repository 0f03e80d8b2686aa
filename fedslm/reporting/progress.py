"""`Progress`: where a run stands, folded from its events. Both terminal views read it; it draws nothing itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fedslm.reporting.events import Event

_RECENT_ROUNDS = 7  # rounds whose times the ETA is taken from: enough for a median, few enough to follow a change


@dataclass(slots=True)
class Hospital:
    """What is known of one hospital. Times in seconds, sizes in bytes, both as its events gave them."""

    name: str
    state: str = "waiting"  # waiting, joined, training, trained, masked, dropped or refused
    code: str = ""  # why it was dropped or refused
    rounds: set[int] = field(default_factory=set)  # in which it trained
    epsilon: float | None = None  # spent at most: the run's after the last round it trained in; None: not known
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a run said of itself when it started; see `run_started` in `events.KINDS`."""

    run_id: str
    model: str
    adapter_parameters: int
    privacy: Mapping[str, Any]
    masked: bool
    bound: str
    seeded: bool

    @property
    def is_private(self) -> bool:
        """False where nobody is protected, whatever the mode is called."""
        return self.privacy.get("mode") != "none" and self.privacy.get("noise_multiplier") != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A session that came to nothing."""

    round: int
    session: int
    asked: int
    missing: Sequence[str]

    @property
    def words(self) -> str:
        """session 5 failed, 2 of 5 missing"""
        return f"session {self.session} failed, {len(self.missing)} of {self.asked} missing"


@dataclass(slots=True)
class Contestant:
    """One model of the closing comparison."""

    name: str
    round: int = 0
    rounds: int = 0
    accuracy: float | None = None  # None until it is finished

    @property
    def fraction(self) -> float:
        """Share of its training that is done, 0 to 1."""
        return 1.0 if self.accuracy is not None else self.round / max(1, self.rounds)


@dataclass(slots=True)
class Comparison:
    """The models of the closing comparison; several may be in training at once."""

    total: int
    contestants: dict[str, Contestant] = field(default_factory=dict)  # by name, finished ones last

    @property
    def fraction(self) -> float:
        """Share of the whole comparison that is done, 0 to 1."""
        return sum(contestant.fraction for contestant in self.contestants.values()) / self.total

    @property
    def finished(self) -> int:
        """How many are trained and scored."""
        return sum(contestant.accuracy is not None for contestant in self.contestants.values())

    @property
    def shown(self) -> list[Contestant]:
        """Those in training, else the one that finished last."""
        working = [contestant for contestant in self.contestants.values() if contestant.accuracy is None]
        return working or list(self.contestants.values())[-1:]


class Progress:
    """The state of a run. Feed it every event with `apply`; read the attributes.

    Applying the events of an earlier part of the same run first is allowed: a resumed run then shows its whole curve.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self.hospitals: dict[str, Hospital] = {}
        self.planned = 0  # hospitals the plan names; a stranger that was refused has a row, but no part in it
        self.rounds = 0
        self.round = 0  # running, or the last one finished
        self.is_round_open = False
        self.epsilon: float | None = None
        self.losses: dict[int, float] = {}
        self.accuracies: dict[int, float] = {}
        self.held_out: tuple[int, float, float] | None = None  # round, noised accuracy and its noise, by the hospitals
        self.saved_round: int | None = None
        self.last_drop: tuple[int, str, str] | None = None  # round, hospital, code
        self.drops = 0
        self.attempt = 0  # at the open round, from 0
        self.failures: list[Failure] = []
        self.comparison: Comparison | None = None
        self.outcome = ""  # finished, interrupted or failed
        self.failure_code = ""
        self._asked = 0  # hospitals in the open session
        self._round_seconds: dict[int, float] = {}
        self._round_opened_at: float | None = None
        self._started_at: float | None = None
        self._ended_at: float | None = None

    def apply(self, event: Event) -> None:
        """Takes one event into account."""
        getattr(self, f"_{event.kind}")(event.time, **event.fields)

    @property
    def rounds_done(self) -> int:
        """Number of whole rounds behind the adapter."""
        return self.round - 1 if self.is_round_open else self.round

    @property
    def fraction(self) -> float:
        """Share of the run that is done, 0 to 1, counting the answers of the open round."""
        states = Counter(hospital.state for hospital in self.hospitals.values())
        answered = states["trained"] + states["masked"] + states["dropped"]
        # The last step of a round (unmask, average) is not done when all have answered, hence the 1.
        inside = answered / (answered + states["training"] + 1) if self.is_round_open else 0.0
        return min(1.0, (self.rounds_done + inside) / self.rounds) if self.rounds else 0.0

    def elapsed_s(self, now: float) -> float:
        """Seconds since the run (or its resumed part) started, up to its end."""
        if self._started_at is None:
            return 0.0
        return max(0.0, (now if self._ended_at is None else self._ended_at) - self._started_at)

    def remaining_s(self, now: float) -> float | None:
        """Seconds to go by the median of recent rounds, each up to its last event; None while unknown or over."""
        known = [seconds for round, seconds in self._round_seconds.items() if round <= self.rounds_done]
        if self.outcome or not known or self.rounds_done >= self.rounds:
            return None
        usual = median(known[-_RECENT_ROUNDS:])
        opened_at = self._round_opened_at if self.is_round_open else None
        inside = 0.0 if opened_at is None else min(usual, max(0.0, now - opened_at))
        return (self.rounds - self.rounds_done) * usual - inside

    def hospital(self, name: str) -> Hospital:
        """The hospital of that name; one nobody announced gets a row of its own."""
        return self.hospitals.setdefault(name, Hospital(name))

    def _run_started(
        self,
        time: float,
        *,
        hospitals: Sequence[str],
        rounds: int,
        first_round: int,
        plan_sha256: str,
        **header: Any,
    ) -> None:
        self.header = Header(**header)
        self.rounds, self.round, self.is_round_open = rounds, first_round - 1, False
        self._started_at, self._ended_at, self.outcome, self._round_opened_at = time, None, "", None
        self.planned, self.comparison = len(hospitals), None
        for name in hospitals:
            hospital = self._set(name, "waiting")
            if first_round == 1:
                hospital.epsilon = 0.0

    def _hospital_joined(self, time: float, *, hospital: str) -> None:
        self._set(hospital, "joined")

    def _hospital_refused(self, time: float, *, hospital: str, code: str) -> None:
        self._set(hospital, "refused", code)

    def _round_started(self, time: float, *, round: int) -> None:
        self.round, self.is_round_open, self._round_opened_at, self.attempt = round, True, time, 0
        for hospital in self.hospitals.values():
            if hospital.state not in ("waiting", "refused"):
                self._set(hospital.name, "training")

    def _session_started(
        self, time: float, *, round: int, session: int, attempt: int, hospitals: Sequence[str]
    ) -> None:
        self.attempt, self._asked = attempt, len(hospitals)
        for name in hospitals:
            self._set(name, "training")

    def _session_failed(self, time: float, *, round: int, session: int, code: str, missing: Sequence[str]) -> None:
        self.failures.append(Failure(round=round, session=session, asked=self._asked, missing=missing))

    def _hospital_trained(
        self, time: float, *, round: int, hospital: str, seconds: float, bytes_up: int, bytes_down: int
    ) -> None:
        row = self._set(hospital, "trained")
        row.rounds.add(round)
        row.seconds = seconds
        row.bytes_up += bytes_up
        row.bytes_down += bytes_down

    def _hospital_masked(
        self, time: float, *, round: int, hospital: str, seconds: float, bytes_up: int, bytes_down: int
    ) -> None:
        row = self._set(hospital, "masked")
        row.bytes_up += bytes_up
        row.bytes_down += bytes_down

    def _hospital_dropped(self, time: float, *, round: int, hospital: str, code: str, step: str) -> None:
        self._set(hospital, "dropped", code)
        self.drops += 1
        self.last_drop = (round, hospital, code if step == "train" else f"{code} in {step}")

    def _round_finished(
        self, time: float, *, round: int, seconds: float, epsilon: float | None, survivors: Sequence[str]
    ) -> None:
        self.round, self.is_round_open, self.epsilon = round, False, epsilon
        self._time_round(round, time)
        for name in survivors:
            self._set(name, "trained").rounds.add(round)
        for hospital in self.hospitals.values():
            if hospital.state == "training":  # it was not asked this time
                self._set(hospital.name, "joined")
            if round in hospital.rounds:  # who trained has spent, even where its update was lost afterwards
                hospital.epsilon = epsilon

    def _scored(self, time: float, *, round: int, loss: float, accuracy: float, seconds: float) -> None:
        self.losses[round], self.accuracies[round] = loss, accuracy
        self._time_round(round, time)

    def _held_out_scored(self, time: float, *, round: int, accuracy: float | None, stddev: float | None) -> None:
        self.held_out = None if accuracy is None or stddev is None else (round, accuracy, stddev)

    def _checkpoint_written(self, time: float, *, round: int, seconds: float) -> None:
        self.saved_round = round
        self._time_round(round, time)

    def _comparison_started(self, time: float, *, name: str, index: int, total: int) -> None:
        if self.comparison is None or index == 1:
            self.comparison = Comparison(total=total)
        self.comparison.contestants[name] = Contestant(name=name)

    def _comparison_round(self, time: float, *, name: str, round: int, rounds: int) -> None:
        contestant = self._contestant(name)
        contestant.round, contestant.rounds = round, rounds

    def _comparison_finished(self, time: float, *, name: str, accuracy: float) -> None:
        contestant = self._contestant(name)
        contestant.accuracy = accuracy
        if self.comparison is not None:
            self.comparison.contestants.pop(name, None)
            self.comparison.contestants[name] = contestant

    def _contestant(self, name: str) -> Contestant:
        known = self.comparison.contestants if self.comparison is not None else {}
        return known.get(name) or Contestant(name=name)

    def _run_interrupted(self, time: float, *, round: int, resume_command: str) -> None:
        self._end(time, "interrupted")

    def _run_failed(self, time: float, *, code: str, message: str) -> None:
        self.failure_code = code
        self._end(time, "failed")

    def _run_finished(self, time: float, *, round: int, seconds: float) -> None:
        self.round = round
        self._end(time, "finished")

    def _set(self, name: str, state: str, code: str = "") -> Hospital:
        hospital = self.hospital(name)
        hospital.state, hospital.code = state, code
        return hospital

    def _time_round(self, round: int, time: float) -> None:
        """A round lasts from its start to the last event about it: score and checkpoint come in any order."""
        if round == self.round and self._round_opened_at is not None:
            self._round_seconds[round] = time - self._round_opened_at

    def _end(self, time: float, outcome: str) -> None:
        self.outcome, self._ended_at = outcome, time
        if outcome == "finished":
            self.is_round_open = False
