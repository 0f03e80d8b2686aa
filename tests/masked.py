"""Hospitals of a masked run without a model or a disk, made of the protocol itself: for tests of the server's side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedslm.crypto.identity import Identity
from fedslm.crypto.prg import SecureStream
from fedslm.crypto.seal import SealingKey
from fedslm.errors import LedgerError, ProtocolError, RollbackError, SessionError
from fedslm.flower.records import (
    ErrorCode,
    adapter_sha256,
    config_sha256,
    error_reply,
    join_reply,
    protocol_code,
    read_plan,
    read_plan_signature,
    read_train_request,
    secagg_bytes,
    secagg_reply,
    to_vector,
)
from fedslm.flower.sessions import session_terms
from fedslm.governance.plan import Plan
from fedslm.governance.receipt import Head, Receipt
from fedslm.governance.roster import Member, Roster, sign_plan, sign_roster, verify_plan
from fedslm.secagg import hospital as protocol
from fedslm.secagg.messages import (
    MAX_PROOFS,
    AbortReply,
    AbortRequest,
    Advert,
    ConfirmRequest,
    HeadProof,
    Invitation,
    JoinReply,
    MaskRequest,
    Opening,
    UnmaskRequest,
)
from fedslm.secagg.terms import verify_proof
from fedslm.secagg.wire import decode, encode
from server.charter import Charter

Arrays = dict[str, np.ndarray[Any, Any]]
STEPS = ("train", "mask", "confirm", "unmask")


@functools.cache
def identity(name: str) -> Identity:
    """One identity a name, the same in every run of the tests."""
    return Identity.from_seeds(sha256(b"ed25519 " + name.encode()).digest(), sha256(b"mldsa " + name.encode()).digest())


@functools.cache
def roster_of(names: tuple[str, ...]) -> Roster:
    """A consortium of these hospitals."""
    return Roster(
        version=1,
        consortium="tests",
        serial=1,
        root=identity("the root").public,
        coordinator=Member(name="the coordinator", key=identity("the coordinator").public),
        members=tuple(Member(name=name, key=identity(name).public) for name in names),
    )


@functools.cache
def charter_of(plan: Plan) -> Charter:
    """A masked plan, signed."""
    roster = roster_of(plan.names)
    return Charter(plan=plan, roster=roster, signature=sign_plan(plan, identity("the coordinator"), roster))


def roster_bytes(plan: Plan) -> bytes:
    """The roster of `charter_of`, as a run folder holds it."""
    return sign_roster(roster_of(plan.names), identity("the root"))


def step_of(message: Message) -> str:
    """ "join", "train", "mask", "confirm", "unmask" or "abort"."""
    return message.metadata.message_type.removeprefix("query.")


class ToyLedger:
    """The rows of a privacy ledger without what they say: all that its head needs.

    Attributes:
      settled: up to which row another ledger, which is lost, was counted as spent.
    """

    def __init__(self, name: str, rows: Iterable[str] = ()) -> None:
        """Opens `name`'s ledger, or takes over rows of it."""
        self.rows, self.settled = list(rows), dict[str, int]()
        if not self.rows:
            self.add(f"{name} opens it")

    @property
    def head(self) -> Head:
        return Head(ledger=self.rows[0], row=len(self.rows), sha256=self.rows[-1])

    def add(self, what: str) -> Head:
        self.rows.append(sha256("".join([*self.rows[-1:], what]).encode()).hexdigest())
        return self.head

    def require(self, head: Head) -> None:
        """Refuses to go on where a row is missing that the hospital has signed."""
        is_here = head.ledger == self.rows[0] and self.rows[head.row - 1 : head.row] == [head.sha256]
        if not is_here and head.row > self.settled.get(head.ledger, 0):
            raise RollbackError("A row that was signed is not here.")


@dataclass
class MaskedHospital:
    """One hospital.

    Attributes:
      update: makes its update from the round and the trained arrays.
      tamper: what it does to a reply's bytes, by step; for hospitals that lie.
      seen: the configs of the training messages, and the openings beside them.
      invited: the invitations that it got.
      others: proofs of others' newest heads that it saw, by hospital and ledger.
      scores: what it adds behind its update, where the plan releases scores.
    """

    charter: Charter
    name: str
    update: Callable[[int, Arrays], Arrays]
    tamper: Callable[[str, bytes], bytes] = lambda step, data: data
    serial: int = 0
    highest: int = 0
    unmasked: set[int] = field(default_factory=set)
    masked_on: dict[bytes, list[int]] = field(default_factory=dict)
    seats: dict[int, protocol.Seat] = field(default_factory=dict)
    seen: list[tuple[dict[str, Any], Opening]] = field(default_factory=list)
    invited: list[Invitation] = field(default_factory=list)
    others: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    scores: tuple[float, float] = (0.0, 0.0)
    ledger: Any = None
    key: Any = None
    advert: Any = None
    _session: int = 0
    _state: Any = None
    _vector: Any = None
    _start: bytes = b""

    def __post_init__(self) -> None:
        self.ledger = ToyLedger(self.name)

    @property
    def identity(self) -> Identity:
        return identity(self.name)

    def join(self, message: Message) -> Message:
        self._check_plan(message)
        invitation = decode(Invitation, secagg_bytes(message))
        self.invited.append(invitation)
        if invitation.own:
            own = verify_proof(decode(HeadProof, invitation.own), {self.name: self.identity.public})
            self.ledger.require(Head.from_bytes(own.ledger_head))
        self.new_advert()
        known = {name: Head.from_bytes(head) for name, head in invitation.known}
        answer = encode(JoinReply(advert=encode(self.advert), proofs=self.newer_proofs(known)[:MAX_PROOFS]))
        answer = self.tamper("join", answer)
        return join_reply(message, hospital=self.name, plan=read_plan(message), advert=answer)

    def newer_proofs(self, known: Mapping[str, Head]) -> tuple[bytes, ...]:
        """Of the others' heads that it saw, those that whoever asks does not know."""
        return tuple(
            proof
            for (name, ledger), (row, proof) in self.others.items()
            if name not in known or known[name].ledger != ledger or known[name].row < row
        )

    def see(self, advert: Advert) -> None:
        """Remembers another hospital's head."""
        head, scope = Head.from_bytes(advert.ledger_head), self.charter.advert_scope
        proof = encode(HeadProof(scope=scope, advert=encode(advert)))
        if self.others.get((advert.member, head.ledger), (0, b""))[0] < head.row:
            self.others[advert.member, head.ledger] = head.row, proof

    def train(self, message: Message) -> bytes:
        self._check_plan(message)
        opening, request = decode(Opening, secagg_bytes(message)), read_train_request(message)
        self.seen.append((dict(message.content.config_records["config"]), opening))
        self._start = adapter_sha256(request.trained, request.frozen)
        terms = session_terms(
            request.plan,
            opening,
            roster_sha256=self.charter.roster_sha256,
            adapter_sha256=self._start,
            config_sha256=config_sha256(message),
        )
        if opening.session <= self.highest:
            raise SessionError("Not a new session.")
        seat = protocol.admit(terms, me=self.name, own_advert=self.advert, keys=self.charter.keys)
        self._require_aborts(opening)
        for advert in terms.adverts:
            if advert.member != self.name:
                self.see(advert)
        self.highest = self._session = opening.session
        self.seats[opening.session] = seat
        weight = request.plan.hospital(self.name).weight
        values = weight * to_vector(self.update(request.round, request.trained))
        if request.plan.privacy.scores is not None:
            values = np.concatenate([values, np.float32(self.scores)])
        self._vector = lambda: terms.fixed_point.encode(values, SecureStream.from_os())
        key, receipt = self.key, self.book(opening.session)
        self.new_advert()
        self._state, reply = protocol.share(
            seat, terms, sealing_key=key, identity=self.identity, next_advert=self.advert, receipt=receipt.to_bytes()
        )
        return encode(reply)

    def book(self, session: int) -> Receipt:
        """Books a session in its ledger, and signs that it did."""
        run = self.charter.plan.sha256
        head = self.ledger.add(f"session {session} of {run}")
        return Receipt.sign(self.identity, hospital=self.name, head=head, run=run, session=session)

    def mask(self, message: Message) -> bytes:
        request = decode(MaskRequest, secagg_bytes(message))
        self.masked_on.setdefault(self._start, []).append(self._session)
        self._state, reply = protocol.mask(self._state, request, self._vector(), keys=self.charter.keys)
        return encode(reply)

    def confirm(self, message: Message) -> bytes:
        request = decode(ConfirmRequest, secagg_bytes(message))
        self._state, reply = protocol.confirm(self._state, request, identity=self.identity)
        return encode(reply)

    def unmask(self, message: Message) -> bytes:
        request = decode(UnmaskRequest, secagg_bytes(message))
        self.unmasked.add(self._session)
        return encode(protocol.unmask(self._state, request, keys=self.charter.keys))

    def abort(self, message: Message) -> bytes:
        session = decode(AbortRequest, secagg_bytes(message)).session
        if session in self.unmasked or session not in self.seats:
            raise SessionError("Unmasked already, or not a session of this hospital.")
        signature = protocol.sign_abort(self.identity, member=self.name, context=self.seats[session].context)
        return encode(AbortReply(session=session, member=self.name, signature=signature))

    def _check_plan(self, message: Message) -> None:
        signature, roster_sha256 = read_plan_signature(message)
        assert roster_sha256 == self.charter.roster.sha256
        verify_plan(read_plan(message), signature, self.charter.roster)

    def new_advert(self, *, key: SealingKey | None = None) -> Advert:
        """Makes its next advert; with somebody's `key` in the place of a new one, for hospitals that lie."""
        self.serial += 1
        self.key = SealingKey.generate() if key is None else key
        self.advert = Advert.sign(
            self.identity,
            member=self.name,
            serial=self.serial,
            sealing_key=self.key.public,
            ledger_head=self.ledger.head.to_bytes(),
            scope=self.charter.advert_scope,
        )
        return self.advert

    def _require_aborts(self, opening: Opening) -> None:
        """Without privacy: no second session on an adapter, unless the first can never be unmasked."""
        if self.charter.plan.privacy.mode != "none":
            return
        for session in self.masked_on.get(self._start, []):
            seat = self.seats[session]
            aborts = {member: signature for number, member, signature in opening.aborts if number == session}
            if protocol.count_aborts(seat.context, seat.names, aborts, self.charter.keys) < seat.bounds.threshold:
                raise SessionError("Masked for this adapter before.")


def masked_hospitals(plan: Plan, update: Callable[[int, int, Arrays], Arrays]) -> dict[str, MaskedHospital]:
    """A hospital for every name of the plan; `update` gets its place in the plan, the round and the arrays."""
    charter = charter_of(plan)
    return {
        name: MaskedHospital(charter=charter, name=name, update=functools.partial(update, index))
        for index, name in enumerate(plan.names)
    }


def masked_app(hospitals: Mapping[str, MaskedHospital]) -> ClientApp:
    """The app of these hospitals, by the name in their node's configuration; refusals become codes."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        hospital, step = hospitals[str(context.node_config["hospital"])], step_of(message)
        try:
            if step == "join":
                return hospital.join(message)
            return secagg_reply(message, hospital.tamper(step, getattr(hospital, step)(message)))
        except (ProtocolError, LedgerError) as error:
            return error_reply(message, protocol_code(error), "0" * 8)
        except FloatingPointError:
            return error_reply(message, ErrorCode.NOT_FINITE, "0" * 8)

    app.train()(answer)
    for step in ("join", "mask", "confirm", "unmask", "abort"):
        app.query(step)(answer)
    return app
