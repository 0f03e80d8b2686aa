"""What the coordinator knows of the hospitals' privacy ledgers: the newest heads that they signed.

A hospital whose ledger was set back has signed a later row before, and somebody has seen it: this coordinator, or another
hospital in an earlier run. What is known is shown to the hospital when it is invited; it settles that, or stays out. None of
it has to be believed: a head counts under its hospital's signature only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from fedslm.errors import LedgerError, ProtocolError
from fedslm.governance.receipt import Head
from fedslm.secagg.messages import Advert, HeadProof, Invitation
from fedslm.secagg.terms import verify_proof
from fedslm.secagg.wire import decode, encode
from server.charter import Charter

MAX_LEDGERS = 16
"""Ledgers that are remembered of one hospital. It has one; another where that was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """A head that a hospital signed.

    Attributes:
      proof: a `HeadProof`, encoded.
      is_settled: the hospital was shown it and joined with another ledger, in which it then is accounted for.
    """

    head: Head
    proof: bytes
    is_settled: bool = False

    def is_answered_by(self, head: Head) -> bool:
        """Whether a ledger that ends there leaves nothing to ask."""
        return _covers(head, self.head) if head.ledger == self.head.ledger else self.is_settled


class Heads:
    """The newest head of every ledger of every hospital in the plan.

    Guarantees:
      Memory does not grow with time: a head a ledger, so many ledgers a hospital.
      A hospital that joins behind its own signature is asked about that before it is in a session.
    """

    def __init__(self, charter: Charter) -> None:
        """Knows nothing yet; `charter` says whose heads count."""
        self._scope, self._keys = charter.advert_scope, charter.keys
        self._claims: dict[str, dict[str, _Claim]] = {name: {} for name in charter.plan.names}
        self._current: dict[str, Head] = {}  # by hospital: where its ledger ends by its own last word
        self._shown: dict[
            str, tuple[int, Head]
        ] = {}  # by hospital: which node was shown which head, and did not answer yet

    def invitation(self, node_id: int, name: str) -> Invitation:
        """What a node is told when it is asked to join.

        Args:
          name: the hospital that it was last; "" where that is unknown.
        """
        newest = {other: next(reversed(claims.values())) for other, claims in self._claims.items() if claims}
        known = tuple((other, claim.head.to_bytes()) for other, claim in sorted(newest.items()) if other != name)
        claim = self._to_show(name)
        self._shown.pop(name, None)
        if claim is None:
            return Invitation(known=known, own=b"")
        self._shown[name] = node_id, claim.head
        return Invitation(known=known, own=claim.proof)

    def note(self, advert: Advert) -> None:
        """Takes the head in a hospital's own advert, verified.

        Raises:
          LedgerError: it is none. The other hospitals would refuse a session with it.
        """
        head = Head.from_bytes(advert.ledger_head)
        self._current[advert.member] = head
        before = self._claims[advert.member].get(head.ledger)
        if before is None or _covers(head, before.head):
            self._put(
                advert.member, _Claim(head=head, proof=encode(HeadProof(scope=self._scope, advert=encode(advert))))
            )

    def answered(self, node_id: int, name: str) -> None:
        """Notes that a hospital joined, after `note` took its advert: what it was shown it has settled.

        Raises:
          LedgerError: it cannot have, as its ledger ends before the row that it was shown, or has another one there.
        """
        node, shown = self._shown.pop(name, (node_id, None))
        if shown is None or node != node_id or _covers(self._current[name], shown):
            return
        if shown.ledger == self._current[name].ledger:
            raise LedgerError(f"{name} was shown row {shown.row} of its ledger and joined with an older copy of that.")
        claim = self._claims[name].get(shown.ledger)
        if claim is not None and claim.head == shown:  # else a later row became known meanwhile
            self._claims[name][shown.ledger] = dataclasses.replace(claim, is_settled=True)

    def learn(self, proofs: Iterable[bytes]) -> None:
        """Takes what a hospital knows of others.

        A proof that does not hold says nothing, and is not held against whoever passed it on: keys are replaced.
        """
        for proof in proofs:
            try:
                self._learn(proof)
            except (ProtocolError, LedgerError):
                continue

    def is_doubted(self, advert: Advert) -> bool:
        """Whether its hospital signed another head that this one does not account for, and must be asked about that."""
        head = Head.from_bytes(advert.ledger_head)
        return any(not claim.is_answered_by(head) for claim in self._claims[advert.member].values())

    def _learn(self, proof: bytes) -> None:
        told = decode(HeadProof, proof)
        advert = decode(Advert, told.advert)
        head = Head.from_bytes(advert.ledger_head)
        if self._is_news(advert.member, head):
            verify_proof(told, self._keys)
            self._put(advert.member, _Claim(head=head, proof=proof))

    def _is_news(self, name: str, head: Head) -> bool:
        if name not in self._claims or head == self._current.get(name):
            return False
        before = self._claims[name].get(head.ledger)
        return before is None or not _covers(before.head, head)

    def _put(self, name: str, claim: _Claim) -> None:
        claims = self._claims[name]
        claims.pop(claim.head.ledger, None)  # the newest stands last
        claims[claim.head.ledger] = claim
        if len(claims) > MAX_LEDGERS:
            del claims[next(iter(claims))]

    def _to_show(self, name: str) -> _Claim | None:
        """What a hospital must be asked about, else the newest that is known of its ledger."""
        claims, current = self._claims.get(name, {}), self._current.get(name)
        for claim in claims.values():
            if current is None or not claim.is_answered_by(current):
                return claim
        return None if current is None else claims.get(current.ledger)


def _covers(head: Head, other: Head) -> bool:
    """Whether a ledger that ends at `head` can contain the row `other` of the same ledger."""
    return head.ledger == other.ledger and (head.row > other.row or head == other)
