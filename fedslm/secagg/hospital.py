"""A hospital's side of a session: four pure functions on frozen states, each refusing whatever breaks the promise.

    admit -> Seat, share -> Shared, mask -> Masked, confirm -> Confirmed, unmask -> nothing left

A step's function is to be called once. Whoever calls it commits to a record of the step on disk before the reply is sent,
so that a crash cannot make it run twice. Seeds are drawn from the operating system; `draw` is for tests.

Source: Bonawitz et al. 2017, figure 4 (malicious variant), with pair seeds chosen by one end, transported by HPKE, and
each shared on its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

from fedslm.crypto.identity import Identity, PublicIdentity
from fedslm.crypto.seal import SealingKey
from fedslm.crypto.shamir import split
from fedslm.errors import AdvertError, BoundError, ConsistencyError, SealError, ShareError, SignatureError
from fedslm.secagg.encoding import Ring, add_masks, pack_ring
from fedslm.secagg.letters import Letter, open_letter, seal_letter
from fedslm.secagg.messages import (
    HASH_BYTES,
    Advert,
    ConfirmReply,
    ConfirmRequest,
    MaskedReply,
    MaskRequest,
    ShareList,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
    confirm_body,
)
from fedslm.secagg.seeds import PAIR, SEED_BYTES, SELF, commitment, cut_pairs, mask_key, seed_of
from fedslm.secagg.terms import Bounds, Terms, key_of
from fedslm.secagg.wire import Blob, Fixed, Layout, Many, Number, Points, Text, Tuple, decode, encode

Draw = Callable[[int], bytes]
Keys = Mapping[str, PublicIdentity]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A hospital's place in a session whose terms it accepted: all that later steps need of them, and nothing secret.

    Attributes:
      point: its own, from 1.
      names: of U1 by point.
    """

    context: bytes
    point: int
    names: tuple[str, ...]
    colluders: int
    honest: int
    ring_bits: int

    LAYOUT: ClassVar[Layout] = Layout(
        101,
        (
            ("context", Fixed(HASH_BYTES)),
            ("point", Number(1)),
            ("names", Many(Text())),
            ("colluders", Number(1)),
            ("honest", Number(1)),
            ("ring_bits", Number(1)),
        ),
    )

    @property
    def bounds(self) -> Bounds:
        """The promise of this session."""
        return Bounds(n=len(self.names), colluders=self.colluders, honest=self.honest)

    def name_of(self, point: int) -> str:
        """The hospital at a point; BoundError where there is none."""
        if not 1 <= point <= len(self.names):
            raise BoundError(f"There is no hospital {point} in a session of {len(self.names)}.")
        return self.names[point - 1]

    def require_context(self, context: bytes) -> None:
        """Raises `ConsistencyError` unless a message belongs to this session as this hospital knows it."""
        if context != self.context:
            raise ConsistencyError("A message belongs to another session, or to this one on other terms.")

    def require_quorum(self, points: tuple[int, ...], what: str) -> None:
        """Raises `BoundError` for a set too small for the promise, or without this hospital in it."""
        if len(points) < self.bounds.quorum or self.point not in points:
            raise BoundError(
                f"{what} are {len(points)} of {len(self.names)} hospitals; at least {self.bounds.quorum} with this one "
                "among them are needed."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """After step 1. Secret.

    Attributes:
      seat: encoded.
      seeds: the self seed, then the pair seed with every higher point, 32 bytes each.
      own_share: this hospital's own share of all of them.
      sealing_key: opens what the others sealed to this session's advert.
    """

    seat: bytes
    seeds: bytes
    own_share: bytes
    sealing_key: bytes

    LAYOUT: ClassVar[Layout] = Layout(
        102, (("seat", Blob()), ("seeds", Blob()), ("own_share", Blob()), ("sealing_key", Blob()))
    )

    def __repr__(self) -> str:
        return "Shared(secrets hidden)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """After step 2. Secret.

    Attributes:
      shares: for every point of U2, ascending: its dealer's point and this hospital's share of all its seeds.
    """

    seat: bytes
    shares: tuple[tuple[int, bytes], ...]

    LAYOUT: ClassVar[Layout] = Layout(103, (("seat", Blob()), ("shares", Many(Tuple((Number(1), Blob()))))))

    @property
    def sharers(self) -> tuple[int, ...]:
        """U2, as this hospital masked for it."""
        return tuple(point for point, _ in self.shares)

    def __repr__(self) -> str:
        return "Masked(secrets hidden)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """After step 3. Secret.

    Attributes:
      survivors: U3, as this hospital signed it.
    """

    masked: bytes
    survivors: tuple[int, ...]

    LAYOUT: ClassVar[Layout] = Layout(104, (("masked", Blob()), ("survivors", Points())))

    def __repr__(self) -> str:
        return "Confirmed(secrets hidden)"


def admit(terms: Terms, *, me: str, own_advert: Advert, keys: Keys) -> Seat:
    """Step 1, before anything is read or trained: takes a seat in a session, or refuses it.

    Args:
      own_advert: the one this hospital made last and has not used.
      keys: the roster's.
    Raises:
      AdvertError: its own advert is missing or altered; see `Terms.verify_adverts` for those of others.
    """
    if me not in terms.names:
        raise AdvertError(f"The session does not have the advert of {me}, which was asked to join it.")
    point = terms.names.index(me) + 1
    if terms.adverts[point - 1] != own_advert:
        raise AdvertError(f"The advert in the name of {me} is not the one it made for this session.")
    terms.verify_adverts(keys)
    return Seat(
        context=terms.context,
        point=point,
        names=terms.names,
        colluders=terms.bounds.colluders,
        honest=terms.bounds.honest,
        ring_bits=terms.fixed_point.ring_bits,
    )


def share(
    seat: Seat,
    terms: Terms,
    *,
    sealing_key: SealingKey,
    identity: Identity,
    next_advert: Advert,
    receipt: bytes,
    draw: Draw = os.urandom,
) -> tuple[Shared, SharesReply]:
    """Step 1, after training: draws the session's seeds and seals each hospital its shares of them.

    Args:
      sealing_key: the private half of this hospital's own advert in `terms`.
      next_advert: for the session after this one.
      receipt: that the session is booked in this hospital's ledger, signed; sent as it is.
    Returns:
      What to keep, and what to send.
    """
    n, u = len(seat.names), seat.point
    seeds = draw(SEED_BYTES * (1 + n - u))
    shares = split(seeds, threshold=seat.bounds.threshold, shares=n, randomness=draw)
    ciphertexts = tuple(
        seal_letter(seat.context, u, v, seeds=seeds, share=shares[v - 1], to=terms.adverts[v - 1].sealing_key)
        for v in range(1, n + 1)
        if v != u
    )
    listed = ShareList.sign(
        identity,
        signer=seat.names[u - 1],
        context=seat.context,
        sender=u,
        hashes=tuple(sha256(ciphertext).digest() for ciphertext in ciphertexts),
        commitments=_commitments(seat, seeds),
    )
    state = Shared(seat=encode(seat), seeds=seeds, own_share=shares[u - 1], sealing_key=sealing_key.to_bytes())
    reply = SharesReply(
        context=seat.context,
        shares=encode(listed),
        ciphertexts=ciphertexts,
        next_advert=encode(next_advert),
        receipt=receipt,
    )
    return state, reply


def mask(state: Shared, request: MaskRequest, vector: Ring, *, keys: Keys) -> tuple[Masked, MaskedReply]:
    """Step 2: opens the others' shares and masks the vector for exactly those who sent some.

    Args:
      vector: uint32 levels, shape [d]; masked in place, so that the clear one is gone.
    Raises:
      ConsistencyError: another session. DecodeError: a list that is none. SignatureError: a list its sender did not sign.
      SealError: a ciphertext that is not the listed one, or does not open. ShareError: a seed not committed to.
      BoundError: U2 too small, or a hospital twice, out of order or from outside.
    """
    seat = decode(Seat, state.seat)
    seat.require_context(request.context)
    letters = _open_letters(seat, SealingKey.from_bytes(state.sealing_key), request, keys)
    shares = {seat.point: state.own_share, **{point: letter.share for point, letter in letters.items()}}
    sharers = tuple(sorted(shares))
    seat.require_quorum(sharers, "Those who shared")
    plus, minus = _mask_keys(seat, state.seeds, letters)
    add_masks(vector, plus=plus, minus=minus)
    kept = Masked(seat=state.seat, shares=tuple((point, shares[point]) for point in sharers))
    return kept, MaskedReply(context=seat.context, sender=seat.point, vector=pack_ring(vector, seat.ring_bits))


def confirm(state: Masked, request: ConfirmRequest, *, identity: Identity) -> tuple[Confirmed, ConfirmReply]:
    """Step 3: signs whose vectors are in the sum.

    Raises:
      ConsistencyError: another session, or another U2 than the one it masked for. BoundError: U3 too small, not within
        U2, or without this hospital.
    """
    seat = decode(Seat, state.seat)
    seat.require_context(request.context)
    if request.sharers != state.sharers:
        raise ConsistencyError("The coordinator names another set of sharers than the one this hospital masked for.")
    if not set(request.survivors) <= set(request.sharers):
        raise BoundError("A survivor is not among those who shared.")
    seat.require_quorum(request.survivors, "The survivors")
    body = confirm_body(request.sharers, request.survivors)
    signature = identity.sign("confirm", body, signer=seat.names[seat.point - 1], scope=seat.context)
    reply = ConfirmReply(context=seat.context, sender=seat.point, signature=signature)
    return Confirmed(masked=encode(state), survivors=request.survivors), reply


def unmask(state: Confirmed, request: UnmaskRequest, *, keys: Keys) -> UnmaskReply:
    """Step 4: reveals the shares that remove the masks from the agreed sum, and no others.

    A self seed's share only of survivors, a pair seed's only where exactly one end survived: never both for one hospital.

    Raises:
      ConsistencyError: another session, or fewer than t survivors signed exactly the sets that this hospital signed.
    """
    masked = decode(Masked, state.masked)
    seat = decode(Seat, masked.seat)
    seat.require_context(request.context)
    _require_agreement(seat, masked.sharers, state.survivors, request, keys)
    shares = dict(masked.shares)
    return UnmaskReply(
        context=seat.context,
        sender=seat.point,
        self_shares=b"".join(seed_of(shares[v], v, v) for v in state.survivors),
        pair_shares=b"".join(seed_of(shares[v], v, w) for v, w in cut_pairs(masked.sharers, state.survivors)),
    )


def sign_abort(identity: Identity, *, member: str, context: bytes) -> bytes:
    """Signs that this hospital has not unmasked a session and never will."""
    return identity.sign("abort", b"", signer=member, scope=context)


def count_aborts(context: bytes, names: tuple[str, ...], aborts: Mapping[str, bytes], keys: Keys) -> int:
    """How many members of a session validly gave it up; with t of them nobody can gather t shares any more.

    Args:
      names: U1 of that session.
      aborts: signature by member.
    """
    return sum(_is_abort(context, name, aborts[name], keys) for name in set(names) & set(aborts))


def _is_abort(context: bytes, name: str, signature: bytes, keys: Keys) -> bool:
    try:
        keys[name].verify("abort", b"", signature, signer=name, scope=context)
    except (SignatureError, KeyError):
        return False
    return True


def _open_letters(seat: Seat, sealing_key: SealingKey, request: MaskRequest, keys: Keys) -> dict[int, Letter]:
    letters: dict[int, Letter] = {}
    for listed, ciphertext in request.deliveries:
        sender, letter = _open_delivery(seat, sealing_key, listed, ciphertext, keys)
        if letters and sender <= max(letters):
            raise BoundError(f"The shares of hospital {sender} were delivered twice, or out of order.")
        letters[sender] = letter
    return letters


def _open_delivery(
    seat: Seat, sealing_key: SealingKey, listed: bytes, ciphertext: bytes, keys: Keys
) -> tuple[int, Letter]:
    shares = decode(ShareList, listed)
    u, v = shares.sender, seat.point
    name = seat.name_of(u)
    shares.require_shape(len(seat.names))
    if u == v:
        raise BoundError(f"Hospital {u} was delivered shares in its own name.")
    key_of(keys, name).verify("shares", shares.body, shares.signature, signer=name, scope=seat.context)
    if sha256(ciphertext).digest() != shares.hash_for(v):
        raise SealError(f"The ciphertext delivered as from hospital {u} is not the one it listed for this hospital.")
    letter = open_letter(sealing_key, ciphertext, context=seat.context, u=u, v=v, n=len(seat.names))
    if u < v and commitment(PAIR, seat.context, u, v, letter.pair_seed) != shares.pair_commitment(v):
        raise ShareError(f"Hospital {u} sealed another pair seed than the one it committed to.")
    return u, letter


def _commitments(seat: Seat, seeds: bytes) -> tuple[bytes, ...]:
    u = seat.point
    return tuple(
        commitment(SELF if v == u else PAIR, seat.context, u, v, seed_of(seeds, u, v))
        for v in range(u, len(seat.names) + 1)
    )


def _mask_keys(seat: Seat, seeds: bytes, letters: Mapping[int, Letter]) -> tuple[list[bytes], list[bytes]]:
    u, context = seat.point, seat.context
    plus = [mask_key(SELF, context, u, u, seed_of(seeds, u, u))]
    plus += [mask_key(PAIR, context, u, v, seed_of(seeds, u, v)) for v in sorted(letters) if v > u]
    minus = [mask_key(PAIR, context, v, u, letters[v].pair_seed) for v in sorted(letters) if v < u]
    return plus, minus


def _require_agreement(
    seat: Seat, sharers: tuple[int, ...], survivors: tuple[int, ...], request: UnmaskRequest, keys: Keys
) -> None:
    body, needed, valid = confirm_body(sharers, survivors), seat.bounds.threshold, 0
    for point, signature in request.confirmations:
        valid += point in survivors and _is_confirmed(seat, point, body, signature, keys)
        if valid == needed:
            return
    raise ConsistencyError(
        f"Only {valid} of the {needed} signatures needed are over the survivors that this hospital signed; "
        "the coordinator showed others another set, or somebody else's signature."
    )


def _is_confirmed(seat: Seat, point: int, body: bytes, signature: bytes, keys: Keys) -> bool:
    name = seat.name_of(point)
    try:
        key_of(keys, name).verify("confirm", body, signature, signer=name, scope=seat.context)
    except SignatureError:
        return False
    return True
