"""The coordinator's side of a session: relays, adds, and in the end removes the masks of a sum it cannot take apart.

It is in one of five phases and takes each hospital's message of that phase once. A refused message raises and changes
nothing: its hospital counts as one that dropped out. Vectors are added as they come, so memory does not grow with the
number of hospitals beyond the ciphertexts it relays.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from fedslm.crypto.identity import PublicIdentity
from fedslm.crypto.seal import OVERHEAD_BYTES
from fedslm.crypto.shamir import combine, evaluate
from fedslm.errors import (
    AdvertError,
    BoundError,
    ConsistencyError,
    DecodeError,
    SessionError,
    ShareError,
    ThresholdError,
)
from fedslm.secagg.encoding import Ring, add_masks, unpack_ring
from fedslm.secagg.messages import (
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
from fedslm.secagg.seeds import PAIR, SEED_BYTES, SELF, commitment, cut_pairs, mask_key
from fedslm.secagg.terms import Terms, key_of, verify_advert
from fedslm.secagg.wire import Data, decode, encode

SUBSETS_TRIED = 500
"""Choices of t answers that are tried before a session with a bad share is given up."""

Keys = Mapping[str, PublicIdentity]


class Phase(enum.IntEnum):
    """What the coordinator is waiting for."""

    SHARES = 1
    VECTORS = 2
    CONFIRMATIONS = 3
    REVEALED = 4
    DONE = 5


@dataclass(frozen=True, slots=True)
class _Secret:
    """A seed that is to be reconstructed: its label and pair, and what its dealer committed to."""

    label: str
    u: int
    v: int
    commitment: bytes


class Coordinator:
    """One session.

    Guarantees:
      Learns the sum over the survivors, and U1, U2, U3. At most one vector is held here, and one more while it arrives.
    """

    def __init__(self, terms: Terms, *, keys: Keys) -> None:
        """Begins with adverts already in `terms`.

        Args:
          keys: the roster's, for those hospitals that the plan names.
        Raises:
          AdvertError: one of them is forged.
        """
        terms.verify_adverts(keys)
        self._terms, self._keys, self._context = terms, keys, terms.context
        self._phase = Phase.SHARES
        self._sealing_keys = {advert.sealing_key for advert in terms.adverts}
        self._lists: dict[int, tuple[bytes, ShareList]] = {}
        self._ciphertexts: dict[int, tuple[bytes, ...]] = {}
        self._total: Ring = np.zeros(terms.fixed_point.length, dtype=np.uint32)
        self._survivors: set[int] = set()
        self._confirmations: dict[int, bytes] = {}
        self._answers: dict[int, bytes] = {}
        self._off: set[tuple[int, int]] = set()

    @property
    def context(self) -> bytes:
        """This session's context."""
        return self._context

    @property
    def sharers(self) -> tuple[int, ...]:
        """U2 so far: who shared."""
        return tuple(sorted(self._lists))

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3 so far: whose vectors are in the sum."""
        return tuple(sorted(self._survivors))

    @property
    def confirmers(self) -> tuple[int, ...]:
        """Who confirmed U3 so far, and is to be asked for shares."""
        return tuple(sorted(self._confirmations))

    def shares(self, point: int, data: Data) -> Advert:
        """Takes a hospital's answer to step 1.

        Returns:
          Its advert for the next session, verified.
        Raises:
          DecodeError, ConsistencyError, SignatureError, AdvertError: the hospital is left out.
        """
        reply = decode(SharesReply, data)
        self._require(Phase.SHARES, point, reply.context, self._lists)
        listed = decode(ShareList, reply.shares)
        name = self._check_list(point, listed, reply.ciphertexts)
        advert = decode(Advert, reply.next_advert)
        if advert.member != name:
            raise ConsistencyError(f"{name} sent an advert in the name of another.")
        self._check_advert(advert)
        self._lists[point], self._ciphertexts[point] = (reply.shares, listed), reply.ciphertexts
        self._sealing_keys.add(advert.sealing_key)
        return advert

    def mask_requests(self) -> Iterator[tuple[int, bytes]]:
        """Ends step 1 and gives each sharer its request, one at a time.

        Raises:
          ThresholdError: too few shared.
        """
        self._end(Phase.SHARES, len(self._lists), "shared")
        return ((v, self._mask_request(v)) for v in self.sharers)

    def masked(self, point: int, data: Data) -> None:
        """Adds a hospital's masked vector to the sum and forgets it.

        Raises:
          DecodeError, ConsistencyError, SessionError: not added.
        """
        reply = decode(MaskedReply, data)
        self._require(Phase.VECTORS, point, reply.context, self._survivors)
        self._require_sender(point, reply.sender)
        if point not in self._lists:
            raise BoundError(f"Hospital {point} sent a vector without having shared.")
        fixed_point = self._terms.fixed_point
        vector = unpack_ring(reply.vector, fixed_point.ring_bits, fixed_point.length)
        np.add(self._total, vector, out=self._total)
        self._survivors.add(point)

    def confirm_request(self) -> bytes:
        """Ends step 2; the same request for every survivor.

        Raises:
          ThresholdError: too few vectors.
        """
        self._end(Phase.VECTORS, len(self._survivors), "sent a masked update")
        self._ciphertexts.clear()
        return encode(ConfirmRequest(context=self._context, sharers=self.sharers, survivors=self.survivors))

    def confirmed(self, point: int, data: Data) -> None:
        """Takes a survivor's signature over U2 and U3.

        Raises:
          DecodeError, ConsistencyError, SignatureError, SessionError: not counted.
        """
        reply = decode(ConfirmReply, data)
        self._require(Phase.CONFIRMATIONS, point, reply.context, self._confirmations)
        self._require_sender(point, reply.sender)
        self._require_survivor(point)
        name = self._terms.names[point - 1]
        body = confirm_body(self.sharers, self.survivors)
        key_of(self._keys, name).verify("confirm", body, reply.signature, signer=name, scope=self._context)
        self._confirmations[point] = reply.signature

    def unmask_request(self) -> bytes:
        """Ends step 3; the same request for every confirmer.

        Raises:
          ThresholdError: fewer than t confirmed.
        """
        self._end(Phase.CONFIRMATIONS, len(self._confirmations), "confirmed", needed=self._terms.bounds.threshold)
        confirmations = tuple((point, self._confirmations[point]) for point in self.confirmers)
        return encode(UnmaskRequest(context=self._context, confirmations=confirmations))

    def revealed(self, point: int, data: Data) -> None:
        """Takes a hospital's shares.

        Raises:
          DecodeError, ConsistencyError, SessionError: not used.
        """
        reply = decode(UnmaskReply, data)
        self._require(Phase.REVEALED, point, reply.context, self._answers)
        self._require_sender(point, reply.sender)
        self._require_survivor(point)
        pairs = sum(1 for _ in cut_pairs(self.sharers, self.survivors))
        if (len(reply.self_shares), len(reply.pair_shares)) != (
            SEED_BYTES * len(self._survivors),
            SEED_BYTES * pairs,
        ):
            raise DecodeError(f"Hospital {point} revealed another number of shares than the survivors call for.")
        self._answers[point] = reply.self_shares + reply.pair_shares

    @property
    def can_finish(self) -> bool:
        """Whether enough shares are here to try."""
        return len(self._answers) >= self._terms.bounds.threshold

    def finish(self) -> Ring:
        """Removes the masks.

        Returns:
          The sum of the survivors' levels, uint32 modulo 2^32, shape [d]; the caller owns it.
        Raises:
          ThresholdError: fewer than t hospitals revealed shares. ShareError: no t of them fit the commitments; names whom
            it can. Both may be mended by further answers.
        """
        if self._phase != Phase.REVEALED:
            raise SessionError(f"The masks cannot be removed at step {int(self._phase)}.")
        if not self.can_finish:
            raise self._too_few(len(self._answers), "revealed shares", self._terms.bounds.threshold)
        seeds = self._reconstruct(list(self._secrets()))
        self._phase = Phase.DONE
        plus, minus = self._left_over(seeds)
        add_masks(self._total, plus=plus, minus=minus)
        return self._total

    def liars(self) -> tuple[str, ...]:
        """Hospitals found so far to have revealed shares other than those dealt to them.

        Whose share of a single dealer's seeds is off may have been dealt a false one and is not named; whose share of its
        own is off, or of more dealers' than may lie, is.

        Guarantees:
          Names no honest hospital while at most T hospitals lie. With more than T liars an honest one may be named: as
          many dealers can have dealt it false shares. The sum is right all the same: every seed fits its commitment.
        """
        dealers: dict[int, set[int]] = {}
        for dealer, holder in self._off:
            dealers.setdefault(holder, set()).add(dealer)
        may_lie = max(self._terms.bounds.colluders, 1)
        certain = (holder for holder in sorted(dealers) if holder in dealers[holder] or len(dealers[holder]) > may_lie)
        return tuple(self._terms.names[holder - 1] for holder in certain)

    def _check_list(self, point: int, listed: ShareList, ciphertexts: tuple[bytes, ...]) -> str:
        self._require_sender(point, listed.sender)
        listed.require_shape(self._terms.bounds.n)
        name = self._terms.names[point - 1]
        key_of(self._keys, name).verify("shares", listed.body, listed.signature, signer=name, scope=self._context)
        if tuple(sha256(ciphertext).digest() for ciphertext in ciphertexts) != listed.hashes:
            raise ConsistencyError(f"The ciphertexts of {name} are not those it listed.")
        if tuple(map(len, ciphertexts)) != self._ciphertext_lengths(point):
            raise DecodeError(f"The ciphertexts of {name} do not have the length of what it was to seal.")
        return name

    def _ciphertext_lengths(self, u: int) -> tuple[int, ...]:
        # Both ends' points after the context; the seed of a pair goes to its higher end; a share of each seed that u deals.
        n, head = self._terms.bounds.n, OVERHEAD_BYTES + len(self._context) + 2
        return tuple(head + SEED_BYTES * ((u < v) + 1 + n - u) for v in range(1, n + 1) if v != u)

    def _check_advert(self, advert: Advert) -> None:
        hashes = {"plan_sha256": self._terms.plan_sha256, "roster_sha256": self._terms.roster_sha256}
        verify_advert(advert, self._keys, **hashes)
        if advert.sealing_key in self._sealing_keys:
            raise AdvertError(f"The next advert of {advert.member} carries a key of this session, or another's next.")

    def _mask_request(self, v: int) -> bytes:
        deliveries = tuple((self._lists[u][0], self._ciphertexts[u][v - 1 - (v > u)]) for u in self.sharers if u != v)
        return encode(MaskRequest(context=self._context, deliveries=deliveries))

    def _require(self, phase: Phase, point: int, context: bytes, done: object) -> None:
        if self._phase != phase:
            raise SessionError(f"A message of step {int(phase)} came while the session is at step {int(self._phase)}.")
        if context != self._context:
            raise ConsistencyError(f"Hospital {point} answers for another session, or on other terms.")
        if not 1 <= point <= self._terms.bounds.n or point in done:  # type: ignore[operator]
            raise SessionError(f"Hospital {point} answered step {int(phase)} before, or is not in the session.")

    def _require_sender(self, point: int, sender: int) -> None:
        if sender != point:
            raise ConsistencyError(f"Hospital {point} answers in the name of hospital {sender}.")

    def _require_survivor(self, point: int) -> None:
        if point not in self._survivors:
            raise BoundError(f"Hospital {point} is not among the survivors.")

    def _end(self, phase: Phase, count: int, verb: str, *, needed: int | None = None) -> None:
        if self._phase != phase:
            raise SessionError(f"Step {int(phase)} is over; the session is at step {int(self._phase)}.")
        needed = self._terms.bounds.quorum if needed is None else needed
        if count < needed:
            raise self._too_few(count, verb, needed)
        self._phase = Phase(phase + 1)

    def _too_few(self, count: int, verb: str, needed: int) -> ThresholdError:
        return ThresholdError(f"{count} of {self._terms.bounds.n} hospitals {verb}; this session needs {needed}.")

    def _secrets(self) -> Iterator[_Secret]:
        """In the order in which every answer lists its shares."""
        for u in self.survivors:
            yield _Secret(SELF, u, u, self._lists[u][1].commitments[0])
        for u, v in cut_pairs(self.sharers, self.survivors):
            yield _Secret(PAIR, u, v, self._lists[u][1].pair_commitment(v))

    def _reconstruct(self, secrets: list[_Secret]) -> list[bytes]:
        """Every seed, each checked against its commitment, from as many choices of t answers as it takes."""
        seeds: dict[int, bytes] = {}
        choices = _choices(sorted(self._answers), self._terms.bounds.threshold)
        for tried, chosen in enumerate(itertools.islice(choices, SUBSETS_TRIED)):
            missing = [index for index in range(len(secrets)) if index not in seeds]
            found = self._try(chosen, missing, secrets)
            if tried or len(found) < len(missing):
                self._compare(chosen, list(found), secrets)
            seeds.update(found)
            if len(seeds) == len(secrets):
                return [seeds[index] for index in range(len(secrets))]
        raise self._unsolved([secret for index, secret in enumerate(secrets) if index not in seeds])

    def _try(self, chosen: tuple[int, ...], missing: list[int], secrets: list[_Secret]) -> dict[int, bytes]:
        """Those of the missing seeds that these answers give and that fit their commitments."""
        combined = combine({point: _select(self._answers[point], missing) for point in chosen})
        seeds = (combined[SEED_BYTES * place : SEED_BYTES * (place + 1)] for place in range(len(missing)))
        return {index: seed for index, seed in zip(missing, seeds, strict=True) if self._fits(secrets[index], seed)}

    def _fits(self, secret: _Secret, seed: bytes) -> bool:
        return commitment(secret.label, self._context, secret.u, secret.v, seed) == secret.commitment

    def _compare(self, chosen: tuple[int, ...], solved: list[int], secrets: list[_Secret]) -> None:
        """Notes whose shares of seeds that came out right lie off the polynomial of those that gave them.

        T liars can put a polynomial through their own shares and up to t - 2 honest ones without changing the seed; only
        one with more answers on it is known to be the one that was dealt.
        """
        shares = {point: _select(self._answers[point], solved) for point in chosen}
        off: dict[int, set[int]] = {index: set() for index in solved}
        for point in self._answers.keys() - set(chosen) if solved else ():
            expected = evaluate(shares, point)
            for place, index in enumerate(solved):
                if _select(expected, [place]) != _select(self._answers[point], [index]):
                    off[index].add(point)
        doubtful = self._terms.bounds.threshold - 2 + self._terms.bounds.colluders
        for index, points in off.items():
            if len(self._answers) - len(points) > doubtful:
                self._off |= {(secrets[index].u, point) for point in points}

    def _unsolved(self, unsolved: list[_Secret]) -> ShareError:
        dealers = sorted({self._terms.names[secret.u - 1] for secret in unsolved})
        return ShareError(
            f"The shares of {len(unsolved)} seeds dealt by {', '.join(dealers)} do not fit their commitments: a dealer lied, "
            "or more hospitals revealed false shares than can be told apart. No sum was read."
        )

    def _left_over(self, seeds: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Keys to add and to subtract: self masks of survivors, and pair masks whose other end dropped out."""
        plus: list[bytes] = []
        minus: list[bytes] = []
        for secret, seed in zip(self._secrets(), seeds, strict=True):
            key = mask_key(secret.label, self._context, secret.u, secret.v, seed)
            # The lower end of a pair added its mask; where only the higher end survived, it was subtracted.
            (minus if secret.u in self._survivors else plus).append(key)
        return plus, minus


def _choices(points: list[int], threshold: int) -> Iterator[tuple[int, ...]]:
    """Choices of `threshold` points, first all that leave out nobody in particular, then one, then two and so on."""
    for size in range(len(points) - threshold + 1):
        for left_out in itertools.combinations(points, size):
            yield tuple(point for point in points if point not in left_out)[:threshold]


def _select(answer: bytes, indices: list[int]) -> bytes:
    return b"".join(answer[SEED_BYTES * index : SEED_BYTES * (index + 1)] for index in indices)
