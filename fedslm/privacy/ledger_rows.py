"""What a ledger can say, one kind of entry for each, and the row that holds an entry and the hash of the row before it.

Rows are bytes that hospitals sign and keep for life. The meaning of a kind, or of an event, never changes; there are only
new ones, and a release refuses what it does not know. Knows no files, tensors or accountant.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fedslm.config.schema import STRICT, Name, NonNegative, Positive, PrivacyUnit, explain
from fedslm.crypto.identity import PUBLIC_BYTES, PublicIdentity
from fedslm.encoding import canonical_bytes, parse_canonical, sha256_hex
from fedslm.errors import ConfigError, LedgerError, PrivacyError
from fedslm.governance.plan import Sha256
from fedslm.governance.receipt import RowNumber, SessionNumber
from fedslm.privacy.mechanism import Mechanism

SCORED = "dp-sgd+scores/1"
EVENTS = ("dp-sgd/1", SCORED, "none")
"""How a plan trains: `Mechanism` as it is accounted for since the first release, the same with its noised scores of held-out
patients, or without any privacy."""

NO_ROW = "0" * 64
"""Stands for the hash of the row before the first."""

_NEWER = "which this release does not know; it was made by a newer release, so read it with that, or was damaged."

Whole = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
Delta = Annotated[float, Field(gt=0, lt=1)]


def _real_time(value: str) -> str:
    datetime.fromisoformat(value)  # raises ValueError for a 13th month
    return value


Time = Annotated[
    str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"), AfterValidator(_real_time)
]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Opened:
    """The first row, and only that: whose ledger this is.

    Attributes:
      hospital: its name in the roster.
      population: the patients it is for, as the site file names them.
      unit: whom it protects; a plan with another unit is refused.
      identity: the hospital's public keys, as hex; they sign the heads.
      nonce: 32 random hex digits, so that two ledgers never share an id.
    """

    hospital: Name
    population: Name
    unit: PrivacyUnit
    identity: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * PUBLIC_BYTES}}}$")]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

    @property
    def key(self) -> PublicIdentity:
        """The hospital's public keys."""
        return PublicIdentity.from_bytes(bytes.fromhex(self.identity))


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Reserved:
    """A plan was approved, and all it may cost is set aside.

    Attributes:
      plan: its hash.
      event: one of `EVENTS`.
      unit, sample_rate, clip_norm, noise_multiplier, steps, declared_population, max_records_per_unit, max_parameters:
        the mechanism of one session, see `Mechanism`.
      max_records_per_patient: as in `Mechanism`; None is no bound.
      scores_noise_multiplier: as in `Mechanism`; a number for event "dp-sgd+scores/1" and only there.
      max_sessions: sessions that are set aside; event "none" may take more, as they cost no more than one.
      epsilon, delta: what they cost together; epsilon None is unbounded, for event "none" and only there.
      budget_epsilon, budget_delta: the hospital's limit for the population when it approved; epsilon None is no limit.
      coordinator: fingerprint of the key that signed the plan; "" for a plan in the clear, which nobody signs.

    Raises:
      LedgerError: event, epsilon and noise do not go together.
    """

    plan: Sha256
    event: Literal["dp-sgd/1", "dp-sgd+scores/1", "none"]
    unit: PrivacyUnit
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    clip_norm: Positive
    noise_multiplier: NonNegative
    steps: Whole
    declared_population: Whole
    max_records_per_unit: Whole
    max_records_per_patient: Whole | None
    max_parameters: Whole
    scores_noise_multiplier: Positive | None
    max_sessions: SessionNumber
    epsilon: Positive | None
    delta: Delta
    budget_epsilon: Positive | None
    budget_delta: Delta
    coordinator: Annotated[str, Field(pattern=r"^([0-9]{5}( [0-9]{5}){11})?$")]

    def __post_init__(self) -> None:
        # Not by `Mechanism`: whatever a later release asks of a new plan, it reads the rows of the old ones.
        is_private = self.event != "none"
        if is_private == (self.epsilon is None) or (is_private and self.noise_multiplier == 0):
            raise LedgerError(
                f"A plan with event {self.event!r}, epsilon {self.epsilon} and noise_multiplier {self.noise_multiplier} "
                "cannot be reserved; event 'none' has epsilon None, unbounded, and every other has a number and noise."
            )
        if (self.event == SCORED) == (self.scores_noise_multiplier is None):
            raise LedgerError(
                f"A plan with event {self.event!r} and scores_noise_multiplier {self.scores_noise_multiplier} cannot be "
                f"reserved; event '{SCORED}' has a number there, and every other null."
            )

    def mechanism(self) -> Mechanism:
        """What was approved to run in every session, for the accountant.

        Raises:
          PrivacyError: the plan has no privacy, or with its values none can be guaranteed.
        """
        if self.event == "none":
            raise PrivacyError(
                f"Plan {self.plan[:12]} was approved without privacy; no mechanism bounds what it costs."
            )
        return Mechanism(
            unit=self.unit,
            sample_rate=self.sample_rate,
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
            declared_population=self.declared_population,
            max_records_per_unit=self.max_records_per_unit,
            max_records_per_patient=self.max_records_per_patient,
            max_parameters=self.max_parameters,
            scores_noise_multiplier=self.scores_noise_multiplier,
        )


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Booked:
    """A session of a reserved plan is about to train; from here on it counts, whatever becomes of it."""

    plan: Sha256
    session: SessionNumber


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Closed:
    """A plan is over, and counts with the sessions that it started.

    Attributes:
      sessions: how many were booked.
      epsilon: what they cost at the plan's delta; None is unbounded.
    """

    plan: Sha256
    sessions: Annotated[int, Field(ge=0, lt=2**32, strict=True)]
    epsilon: NonNegative | None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Data:
    """The population's records changed. The fingerprint is keyed: only the hospital can compare two of them."""

    fingerprint: Sha256


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Forfeited:
    """Rows that were signed are lost, of this ledger or of one before it; what they may have spent counts as spent.

    Attributes:
      ledger, row, sha256: the newest head that is known of what is lost.
      epsilon, delta: what is counted for it, on top of all other rows; epsilon None is unbounded.
    """

    ledger: Sha256
    row: RowNumber
    sha256: Sha256
    epsilon: NonNegative | None
    delta: Annotated[float, Field(ge=0, lt=1)]


Entry = Opened | Reserved | Booked | Closed | Data | Forfeited
_KIND_OF: Mapping[type[Entry], str] = MappingProxyType(
    {
        Opened: "opened",
        Reserved: "reserved",
        Booked: "booked",
        Closed: "closed",
        Data: "data",
        Forfeited: "forfeited",
    }
)
_OWN = ("number", "time", "previous", "kind")  # what a row adds to the fields of its entry; no entry has one of these


def _known_entry(value: Entry) -> Entry:
    if type(value) not in _KIND_OF:
        raise ValueError("expected an entry")
    return value


@dataclass(frozen=True, kw_only=True, config=STRICT)  # no slots: a row remembers its hash
class Row:
    """One entry, hashed onto the row before it.

    Attributes:
      number: 1, 2, 3 and so on; a forfeit of the same ledger's rows goes on after the last row that is lost.
      time: of the hospital's clock, UTC, "2026-11-22T23:11:18Z".
      previous: hash of the row before; `NO_ROW` before the first.
    """

    number: RowNumber
    time: Time
    previous: Sha256
    entry: Annotated[Entry, PlainValidator(_known_entry)]

    @cached_property
    def sha256(self) -> str:
        """Hash of the canonical bytes; the next row holds it."""
        return sha256_hex(self.to_bytes())

    def to_values(self) -> dict[str, Any]:
        """The row as one flat object."""
        own = {"number": self.number, "time": self.time, "previous": self.previous, "kind": _KIND_OF[type(self.entry)]}
        return own | {name: getattr(self.entry, name) for name in self.entry.__slots__}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Row:
        """Reads what `to_values` gave, strictly: 1 does not pass for 1.0, nor "1" for 1.

        Raises:
          LedgerError: an unknown kind, event or field, one that is missing, or an impossible value.
        """
        row = _read(values)
        for name, value in row.to_values().items():
            if type(values[name]) is not type(value):
                raise LedgerError(
                    f"A row of the ledger is refused: {name}={values[name]!r:.60} should be {value!r:.60}."
                )
        return row

    def to_bytes(self) -> bytes:
        """The canonical encoding, which is what gets hashed."""
        return canonical_bytes(self.to_values())

    @classmethod
    def from_bytes(cls, data: bytes) -> Row:
        """Reads what `to_bytes` wrote, strictly.

        Raises:
          LedgerError: damaged, not canonical, made by a newer release, or with an impossible value.
        """
        row = cls.from_values(parse(data, "row of the ledger"))
        vars(row)["sha256"] = sha256_hex(data)  # the same bytes; encoding them again would double the time
        return row


_ROWS = TypeAdapter(Row)
_READERS: Mapping[str, TypeAdapter[Entry]] = MappingProxyType(
    {kind: TypeAdapter(entry) for entry, kind in _KIND_OF.items()}
)


def parse(data: bytes, what: str) -> dict[str, Any]:
    """Reads canonical JSON that belongs to a ledger.

    Args:
      what: names it in the message.
    Raises:
      LedgerError: not canonical JSON of an object.
    """
    try:
        return parse_canonical(data)
    except ConfigError as error:
        raise LedgerError(f"The {what} is refused: {error}") from None


def _read(values: Mapping[str, Any]) -> Row:
    reader = _reader(values)
    try:
        entry = reader.validate_python({name: values[name] for name in values if name not in _OWN})
        own = {name: values[name] for name in _OWN[:-1] if name in values}
        return _ROWS.validate_python(own | {"entry": entry})
    except (ValidationError, LedgerError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise LedgerError(f"A row of the ledger is refused: {reason}") from None


def _reader(values: Mapping[str, Any]) -> TypeAdapter[Entry]:
    """The reader for a row's kind of entry, where this release knows kind and event."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _READERS:
        raise LedgerError(f"A row of the ledger has kind {kind!r:.60}, {_NEWER}")
    if kind == "reserved" and "event" in values and values["event"] not in EVENTS:
        raise LedgerError(f"A row of the ledger has event {values['event']!r:.60}, {_NEWER}")
    return _READERS[kind]
