"""Every message of a session. `docs/protocol.md` shows the bytes; here is what they mean.

`encode` and `decode` (in `wire`) turn them into bytes and back. Hospitals are named by the roster in adverts and by their
point (1 to n, the rank of the name in U1) everywhere else; the context, which every message of a session repeats, fixes
the one from the other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Self

from fedslm.crypto.identity import SIGNATURE_BYTES, Identity
from fedslm.crypto.seal import PUBLIC_KEY_BYTES
from fedslm.encoding import pack
from fedslm.errors import DecodeError
from fedslm.secagg.wire import Blob, Data, Fixed, Layout, Many, Number, Points, Text, Tuple

HASH_BYTES = 32
HEAD_BYTES = 72
"""The head of a privacy ledger: the ledger's id (32), the newest row's number (8) and hash (32)."""

NO_HEAD = bytes(HEAD_BYTES)
"""Stands where a head would, for a hospital without a ledger."""

MAX_PROOFS = 16
"""Proofs of others' heads that come with one answer to an invitation."""

_HASH = Fixed(HASH_BYTES)
_SIGNATURE = Fixed(SIGNATURE_BYTES)
_POINT = Number(1)
_SESSION = Number(4)
_HEAD = Fixed(HEAD_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """A hospital's one-time key for one session, signed.

    Attributes:
      member: its name in the roster.
      serial: counts the hospital's adverts; no two have the same.
      sealing_key: HPKE public key; erased after one session.
      ledger_head: the newest row of its privacy ledger, so that others remember it; `NO_HEAD` where it keeps none.
      signature: over all of that, and over the plan and the roster it is for.
    """

    member: str
    serial: int
    sealing_key: bytes
    ledger_head: bytes
    signature: bytes

    LAYOUT: ClassVar[Layout] = Layout(
        1,
        (
            ("member", Text()),
            ("serial", Number(8)),
            ("sealing_key", Fixed(PUBLIC_KEY_BYTES)),
            ("ledger_head", _HEAD),
            ("signature", _SIGNATURE),
        ),
    )

    @classmethod
    def sign(
        cls, identity: Identity, *, member: str, serial: int, sealing_key: bytes, ledger_head: bytes, scope: bytes
    ) -> Self:
        """Makes an advert. `scope` is what it is for: the hashes of the plan and of the roster, 64 bytes."""
        body = _advert_body(serial, sealing_key, ledger_head)
        signature = identity.sign("advert", body, signer=member, scope=scope)
        return cls(member=member, serial=serial, sealing_key=sealing_key, ledger_head=ledger_head, signature=signature)

    @property
    def body(self) -> bytes:
        """What its signature covers, within its scope."""
        return _advert_body(self.serial, self.sealing_key, self.ledger_head)


def _advert_body(serial: int, sealing_key: bytes, ledger_head: bytes) -> bytes:
    return pack(serial.to_bytes(8, "big"), sealing_key, ledger_head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Coordinator to hospital, beside the training message: a session begins.

    Attributes:
      session: its number in the run, from 1; never used again.
      round: the round it is an attempt at.
      attempt: counts from 0 within a round; only a seeded simulation uses it.
      adverts: of every hospital in U1, as signed.
      aborts: for earlier sessions on the same adapter: (session, member, signature).
    """

    session: int
    round: int
    attempt: int
    adverts: tuple[bytes, ...]
    aborts: tuple[tuple[int, str, bytes], ...] = ()

    LAYOUT: ClassVar[Layout] = Layout(
        2,
        (
            ("session", _SESSION),
            ("round", Number(4)),
            ("attempt", Number(4)),
            ("adverts", Many(Blob())),
            ("aborts", Many(Tuple((_SESSION, Text(), _SIGNATURE)))),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareList:
    """What a hospital commits to in step 1, signed: everybody who gets one of its ciphertexts sees the whole list.

    Attributes:
      sender: its point u.
      hashes: SHA-256 of the ciphertext for every other point, ascending.
      commitments: to its self seed, then to its pair seed with every higher point, ascending.
    """

    sender: int
    hashes: tuple[bytes, ...]
    commitments: tuple[bytes, ...]
    signature: bytes

    LAYOUT: ClassVar[Layout] = Layout(
        3, (("sender", _POINT), ("hashes", Many(_HASH)), ("commitments", Many(_HASH)), ("signature", _SIGNATURE))
    )

    @classmethod
    def sign(
        cls,
        identity: Identity,
        *,
        signer: str,
        context: bytes,
        sender: int,
        hashes: tuple[bytes, ...],
        commitments: tuple[bytes, ...],
    ) -> Self:
        """Makes a list for one session."""
        body = _list_body(sender, hashes, commitments)
        signature = identity.sign("shares", body, signer=signer, scope=context)
        return cls(sender=sender, hashes=hashes, commitments=commitments, signature=signature)

    @property
    def body(self) -> bytes:
        """What its signature covers, within its context."""
        return _list_body(self.sender, self.hashes, self.commitments)

    def require_shape(self, n: int) -> None:
        """Raises `DecodeError` unless the list is that of a point among n."""
        expected = (n - 1, n - self.sender + 1)
        if not 1 <= self.sender <= n or (len(self.hashes), len(self.commitments)) != expected:
            raise DecodeError(f"The list of point {self.sender} does not have the length for {n} hospitals.")

    def hash_for(self, receiver: int) -> bytes:
        """The hash of the ciphertext for `receiver`."""
        return self.hashes[receiver - 1 - (receiver > self.sender)]

    def pair_commitment(self, other: int) -> bytes:
        """The commitment to the pair seed with `other`, a higher point."""
        return self.commitments[other - self.sender]


def _list_body(sender: int, hashes: tuple[bytes, ...], commitments: tuple[bytes, ...]) -> bytes:
    return pack(bytes([sender]), b"".join(hashes), b"".join(commitments))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesReply:
    """Step 1, hospital to coordinator.

    Attributes:
      shares: its signed list, encoded.
      ciphertexts: for every other point, ascending.
      next_advert: its advert for the next session, encoded.
      receipt: signed by it, that the session is booked in its privacy ledger; what it says is none of this protocol's.
    """

    context: bytes
    shares: bytes
    ciphertexts: tuple[bytes, ...]
    next_advert: bytes
    receipt: bytes

    LAYOUT: ClassVar[Layout] = Layout(
        4,
        (
            ("context", _HASH),
            ("shares", Blob()),
            ("ciphertexts", Many(Blob())),
            ("next_advert", Blob()),
            ("receipt", Blob()),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRequest:
    """Step 2, coordinator to hospital.

    Attributes:
      deliveries: for every other member of U2, ascending: (its signed list, its ciphertext for the receiver).
    """

    context: bytes
    deliveries: tuple[tuple[bytes, bytes], ...]

    LAYOUT: ClassVar[Layout] = Layout(5, (("context", _HASH), ("deliveries", Many(Tuple((Blob(), Blob()))))))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedReply:
    """Step 2, hospital to coordinator: its masked vector, packed to the ring's bits."""

    context: bytes
    sender: int
    vector: Data

    LAYOUT: ClassVar[Layout] = Layout(6, (("context", _HASH), ("sender", _POINT), ("vector", Blob(is_view=True))))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRequest:
    """Step 3, coordinator to hospital: who was given shares (U2) and whose vector arrived (U3)."""

    context: bytes
    sharers: tuple[int, ...]
    survivors: tuple[int, ...]

    LAYOUT: ClassVar[Layout] = Layout(7, (("context", _HASH), ("sharers", Points()), ("survivors", Points())))


def confirm_body(sharers: tuple[int, ...], survivors: tuple[int, ...]) -> bytes:
    """What a confirmation signs, within its context."""
    return pack(bytes(sharers), bytes(survivors))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmReply:
    """Step 3, hospital to coordinator: its signature over the context, U2 and U3."""

    context: bytes
    sender: int
    signature: bytes

    LAYOUT: ClassVar[Layout] = Layout(8, (("context", _HASH), ("sender", _POINT), ("signature", _SIGNATURE)))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskRequest:
    """Step 4, coordinator to hospital: t or more of the confirmations, ascending by point."""

    context: bytes
    confirmations: tuple[tuple[int, bytes], ...]

    LAYOUT: ClassVar[Layout] = Layout(9, (("context", _HASH), ("confirmations", Many(Tuple((_POINT, _SIGNATURE))))))

    def __post_init__(self) -> None:
        points = [point for point, _ in self.confirmations]
        if any(a >= b for a, b in itertools.pairwise(points)):
            raise DecodeError("The confirmations are not in ascending order of points, or one stands twice.")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskReply:
    """Step 4, hospital to coordinator: 32 bytes a share.

    Attributes:
      self_shares: its shares of b_v for every v in U3, ascending.
      pair_shares: its shares of r_vw for every pair v < w with exactly one end in U3 and the other in U2, ascending.
    """

    context: bytes
    sender: int
    self_shares: bytes
    pair_shares: bytes

    LAYOUT: ClassVar[Layout] = Layout(
        10, (("context", _HASH), ("sender", _POINT), ("self_shares", Blob()), ("pair_shares", Blob()))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRequest:
    """Coordinator to hospital, without privacy only: give up an unfinished session, so that the round can be repeated."""

    session: int

    LAYOUT: ClassVar[Layout] = Layout(11, (("session", _SESSION),))


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortReply:
    """Hospital to coordinator: its signature that it will never unmask that session."""

    session: int
    member: str
    signature: bytes

    LAYOUT: ClassVar[Layout] = Layout(12, (("session", _SESSION), ("member", Text()), ("signature", _SIGNATURE)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """Coordinator to hospital: join, and look at what is known of everybody's ledger.

    Attributes:
      known: of each other hospital whose ledger the coordinator has heard of: its name and newest head, ascending by name.
      own: the proof of the receiver's own newest head, encoded; empty where the coordinator has none.
    """

    known: tuple[tuple[str, bytes], ...]
    own: bytes

    LAYOUT: ClassVar[Layout] = Layout(13, (("known", Many(Tuple((Text(), _HEAD)))), ("own", Blob())))

    def __post_init__(self) -> None:
        if any(a >= b for (a, _), (b, _) in itertools.pairwise(self.known)):
            raise DecodeError("The known heads are not in ascending order of names, or a hospital stands twice.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadProof:
    """That a hospital signed the head of its ledger: an advert of its, with what that was for.

    Attributes:
      scope: the hashes of the plan and of the roster that the advert was signed for, 64 bytes.
      advert: encoded.
    """

    scope: bytes
    advert: bytes

    LAYOUT: ClassVar[Layout] = Layout(14, (("scope", Fixed(2 * HASH_BYTES)), ("advert", Blob())))


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReply:
    """Hospital to coordinator: it joins.

    Attributes:
      advert: its advert for the next session, encoded.
      proofs: encoded, of heads of other hospitals that are newer than those the coordinator said it knows.
    """

    advert: bytes
    proofs: tuple[bytes, ...] = ()

    LAYOUT: ClassVar[Layout] = Layout(15, (("advert", Blob()), ("proofs", Many(Blob()))))

    def __post_init__(self) -> None:
        if len(self.proofs) > MAX_PROOFS:
            raise DecodeError(f"{len(self.proofs)} proofs of others' heads came at once; at most {MAX_PROOFS} may.")
