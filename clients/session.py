"""One hospital's part in the sessions of secure aggregation: the protocol of `fedslm.secagg`, kept on disk between messages.

Every message may come to a fresh process. What is secret waits under lock (`sealed_state`), what was answered is on record
(`store`). The order in every step is: check, compute, drop what is no longer needed, put the answer on record, keep the
state, reply. Wherever a process is killed in between, the hospital is out of that session and nothing is answered twice.

Only training needs torch; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message

from clients.agreement import Agreement, read_agreement
from clients.database import Database, open_database
from clients.heads import newer_proofs, note_claim, see_adverts
from clients.ledger import LedgerBook
from clients.sealed_state import MACHINE, SealedState
from clients.site import Site, own_site
from clients.store import IssuedAdvert, Session, Step, Store
from clients.streams import ROUNDING, open_stream
from fedslm.crypto.seal import SealingKey
from fedslm.errors import ConsistencyError, ModelError, SessionError
from fedslm.flower.records import (
    CONFIG,
    TrainRequest,
    adapter_sha256,
    config_sha256,
    read_train_request,
    secagg_bytes,
    to_vector,
)
from fedslm.flower.sessions import session_terms
from fedslm.governance.receipt import Head, Receipt
from fedslm.process import forbid_core_dumps
from fedslm.secagg import hospital
from fedslm.secagg.messages import (
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
from fedslm.secagg.terms import Terms, advert_scope
from fedslm.secagg.wire import Document, decode, encode

ADVERT = "advert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session whose terms this hospital accepted and booked, before it trains for it.

    Attributes:
      head: the ledger's row in which it was booked.
    """

    session: Session
    head: Head
    attempt: int
    seat: hospital.Seat
    terms: Terms
    sealing_key: SealingKey


class Part:
    """This hospital in the sessions of one masked plan."""

    def __init__(self, agreement: Agreement, *, site: Site, database: Database, sealed: SealedState) -> None:
        """Takes what `take_part` has opened."""
        self._agreement = agreement
        self._plan = agreement.plan
        self._run = agreement.plan.sha256
        self._site = site
        self._database = database
        self._store = Store(database)
        self._ledger = LedgerBook(database, site=site, identity=agreement.identity)
        self._sealed = sealed

    def join(self, data: bytes) -> bytes:
        """Reserves what the plan may cost, and answers with a new one-time key, signed, in the place of the one before.

        Raises:
          BudgetExceededError: the budget does not cover the plan. LedgerError: the ledger is behind what this hospital
          signed, or damaged. AdvertError: the invitation shows a head in this hospital's name that is not its own.
        """
        invitation, mine = decode(Invitation, data), self._agreement.keys[self._agreement.hospital]
        if invitation.own:
            note_claim(self._database, decode(HeadProof, invitation.own), me=self._agreement.hospital, key=mine)
        issued, key = self._issue(self._ledger.reserve(self._plan, coordinator=self._coordinator))
        self._keep_advert(issued, key)
        known = {member: Head.from_bytes(head) for member, head in invitation.known}
        others = {name: key for name, key in self._agreement.keys.items() if name != self._agreement.hospital}
        return encode(JoinReply(advert=issued.data, proofs=newer_proofs(self._database, known, keys=others)))

    def open(self, message: Message) -> Opened:
        """Step 1, before a record is read: accepts a session on its terms, and books it.

        Raises:
          ProtocolError: the terms break a rule, or the session is not new; see `fedslm.secagg.hospital.admit`.
          ModelError: the adapter is not the plan's.
          BudgetExceededError: the plan's privacy does not cover another session. RunError: it cannot be put on record.
        """
        request, opening = read_train_request(message), decode(Opening, secagg_bytes(message))
        _require_one_round(message, request, opening)
        request.require_planned_adapter()
        terms = self._terms(message, request, opening)
        issued = self._store.advert(self._run)
        key = SealingKey.from_bytes(self._sealed.recall(ADVERT, str(issued.serial)))
        own = decode(Advert, issued.data)
        seat = hospital.admit(terms, me=self._agreement.hospital, own_advert=own, keys=self._agreement.keys)
        session = _booked(self._run, opening, terms, excused=self._excused(opening, terms))
        head = self._book(session, issued, terms)
        self._sealed.forget(MACHINE, ADVERT)  # what an earlier session left behind
        self._sealed.forget_vector()
        return Opened(session=session, head=head, attempt=opening.attempt, seat=seat, terms=terms, sealing_key=key)

    def share(
        self, opened: Opened, update: Mapping[str, np.ndarray[Any, Any]], scores: np.ndarray[Any, Any] | None = None
    ) -> bytes:
        """Step 1, after training: encodes the update, seals it, and deals the shares of what will mask it.

        Args:
          update: float32 by name, not yet weighted.
          scores: float32 (2,), noised and scaled, where the plan releases some; no weight is put on them.
        Raises:
          FloatingPointError: it is not finite. RangeError: it does not fit. RunError: it cannot be kept.
        """
        levels = self._encoded(opened, update, scores)
        try:
            self._sealed.keep_vector(levels, *_place(opened.session, Step.SHARE))
            issued, next_key = self._issue(self._ledger.head())
            state, reply = hospital.share(
                opened.seat,
                opened.terms,
                sealing_key=opened.sealing_key,
                identity=self._agreement.identity,
                next_advert=decode(Advert, issued.data),
                receipt=self._receipt(opened),
            )
            answer = self._answer(opened.session, Step.SHARE, reply, keep=state)
        except BaseException:
            self._sealed.forget_vector()
            raise
        self._keep_advert(issued, next_key)
        return answer

    def mask(self, data: bytes) -> bytes:
        """Step 2: the update under its masks.

        Raises:
          ProtocolError: see `fedslm.secagg.hospital.mask`; or the state is lost, or the step was answered.
        """
        session = self._store.expect(self._run, Step.MASK)
        place = _place(session, Step.SHARE)
        state = decode(hospital.Shared, self._sealed.recall(MACHINE, *place))
        request, vector = decode(MaskRequest, data), self._sealed.recall_vector(*place)
        masked, reply = hospital.mask(state, request, vector, keys=self._agreement.keys)
        self._sealed.forget_vector()
        return self._answer(session, Step.MASK, reply, keep=masked)

    def confirm(self, data: bytes) -> bytes:
        """Step 3: this hospital's signature on who is in the sum.

        Raises:
          ProtocolError: see `fedslm.secagg.hospital.confirm`; or the state is lost, or the step was answered.
        """
        session = self._store.expect(self._run, Step.CONFIRM)
        state = decode(hospital.Masked, self._sealed.recall(MACHINE, *_place(session, Step.MASK)))
        request = decode(ConfirmRequest, data)
        confirmed, reply = hospital.confirm(state, request, identity=self._agreement.identity)
        return self._answer(session, Step.CONFIRM, reply, keep=confirmed)

    def unmask(self, data: bytes) -> bytes:
        """Step 4: the shares that the sum needs; every secret of the session is gone when they are returned.

        Raises:
          ProtocolError: see `fedslm.secagg.hospital.unmask`; or the state is lost, or the step was answered.
        """
        session = self._store.expect(self._run, Step.UNMASK)
        state = decode(hospital.Confirmed, self._sealed.recall(MACHINE, *_place(session, Step.CONFIRM)))
        reply = hospital.unmask(state, decode(UnmaskRequest, data), keys=self._agreement.keys)
        return self._answer(session, Step.UNMASK, reply, keep=None)

    def abort(self, data: bytes) -> bytes:
        """Gives a session up for ever, and signs that: with t such signatures nobody can read its sum any more.

        Raises:
          SessionError: this hospital was not in it, or has unmasked it.
        """
        number = decode(AbortRequest, data).session
        session = self._store.abort(self._run, number)
        if self._store.is_newest(session):
            self._sealed.forget(MACHINE)
            self._sealed.forget_vector()
        member = self._agreement.hospital
        signature = hospital.sign_abort(self._agreement.identity, member=member, context=session.context)
        return encode(AbortReply(session=number, member=member, signature=signature))

    def _terms(self, message: Message, request: TrainRequest, opening: Opening) -> Terms:
        if sum(array.size for array in request.trained.values()) != self._plan.adapter.trained_parameters:
            raise ModelError("The adapter does not have the plan's number of parameters; the coordinator sent another.")
        return session_terms(
            self._plan,
            opening,
            roster_sha256=self._agreement.roster_sha256,
            adapter_sha256=adapter_sha256(request.trained, request.frozen),
            config_sha256=config_sha256(message),
        )

    def _book(self, session: Session, issued: IssuedAdvert, terms: Terms) -> Head:
        """Pays for a session and opens it, both or neither; nothing of it is worked for before."""
        scope = advert_scope(self._agreement.plan_sha256, self._agreement.roster_sha256)
        others = [advert for advert in terms.adverts if advert.member != self._agreement.hospital]

        def take_place() -> None:
            self._store.open(session, advert=issued.serial)
            see_adverts(self._database, others, scope=scope, keys=self._agreement.keys)

        return self._ledger.book(self._plan, coordinator=self._coordinator, session=session.number, along=take_place)

    def _receipt(self, opened: Opened) -> bytes:
        receipt = Receipt.sign(
            self._agreement.identity,
            hospital=self._agreement.hospital,
            head=opened.head,
            run=self._run,
            session=opened.session.number,
        )
        return receipt.to_bytes()

    @property
    def _coordinator(self) -> str:
        return self._agreement.roster.coordinator.key.fingerprint

    def _excused(self, opening: Opening, terms: Terms) -> tuple[int, ...] | None:
        """Without noise, two sums over one adapter with different survivors differ by one hospital's update.

        Refuses where that would come about; the store does so again when the masked vector is about to leave.

        Returns:
          The run's earlier sessions on the adapter, which were given up; None under a plan with privacy.
        """
        if self._plan.privacy.mode != "none":
            return None
        masked = self._store.masked_for(terms.adapter_sha256)
        for earlier in masked:
            numbered = [(member, signature) for number, member, signature in opening.aborts if number == earlier.number]
            aborts = dict(numbered) if earlier.run == self._run else {}
            found = hospital.count_aborts(earlier.context, earlier.names, aborts, self._agreement.keys)
            if found < earlier.threshold:
                raise SessionError(
                    f"This hospital masked for the same adapter in session {earlier.number}, and {found} of the "
                    f"{earlier.threshold} hospitals needed have given that session up; the plan has no privacy."
                )
        return tuple(earlier.number for earlier in masked)  # of this run all: another's is never excused

    def _encoded(
        self, opened: Opened, update: Mapping[str, np.ndarray[Any, Any]], scores: np.ndarray[Any, Any] | None
    ) -> np.ndarray[Any, np.dtype[np.uint32]]:
        vector = to_vector(update)
        vector *= np.float32(self._plan.hospital(self._agreement.hospital).weight)
        if scores is not None:
            vector = np.concatenate([vector, scores])
        stream = open_stream(self._site, self._plan, ROUNDING, opened.session.round, opened.attempt)
        return opened.terms.fixed_point.encode(vector, stream)

    def _issue(self, head: Head) -> tuple[IssuedAdvert, SealingKey]:
        key, agreement = SealingKey.generate(), self._agreement
        scope = advert_scope(agreement.plan_sha256, agreement.roster_sha256)

        def make(serial: int) -> bytes:
            advert = Advert.sign(
                agreement.identity,
                member=agreement.hospital,
                serial=serial,
                sealing_key=key.public,
                ledger_head=head.to_bytes(),
                scope=scope,
            )
            return encode(advert)

        return self._store.issue(self._run, make), key

    def _keep_advert(self, issued: IssuedAdvert, key: SealingKey) -> None:
        self._sealed.keep(ADVERT, key.to_bytes(), str(issued.serial))

    def _answer(self, session: Session, step: Step, reply: Document, *, keep: Document | None) -> bytes:
        """Puts an answer on record, then keeps the state that goes with it; only then may it be sent."""
        data = encode(reply)
        self._store.commit(session, step, data)
        if keep is None:
            self._sealed.forget(MACHINE)
        else:
            self._sealed.keep(MACHINE, encode(keep), *_place(session, step))
        return data


@contextmanager
def take_part(message: Message, context: Context) -> Iterator[Part]:
    """Opens what a hospital needs to answer a message of a masked plan, and clears away what finished runs left.

    Raises:
      ConfigError, RosterError, SignatureError: see `read_agreement`. RunError: the state folder cannot be used.
    """
    forbid_core_dumps()
    site = own_site(dict(context.node_config))
    with open_database(site) as database:
        store = Store(database)
        agreement = read_agreement(message, site, store)
        sealed = SealedState(database.folder, context.state, run=agreement.plan.sha256)
        store.visit_finished(sealed.other_runs, sealed.forget_run)
        yield Part(agreement, site=site, database=database, sealed=sealed)


def _booked(run: str, opening: Opening, terms: Terms, *, excused: tuple[int, ...] | None) -> Session:
    return Session(
        run=run,
        number=opening.session,
        round=opening.round,
        adapter=terms.adapter_sha256,
        context=terms.context,
        names=terms.names,
        threshold=terms.bounds.threshold,
        excused=excused,
    )


def _require_one_round(message: Message, request: TrainRequest, opening: Opening) -> None:
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    told = (config.get("session"), request.round, config.get("attempt"))
    if told != (opening.session, opening.round, opening.attempt):
        raise ConsistencyError("The training message and the opening beside it name different sessions or rounds.")


def _place(session: Session, step: Step) -> tuple[str, str]:
    return str(session.number), str(step)
