"""A coordinator that lies, with hospitals that help it, and an account of what they can read together.

Whoever is honest runs the real functions under the rules of a real client: one seat in a session of one number, no step
twice. The colluders run nothing: the adversary holds their keys, signs with them and opens what is sealed to them.

The account is kept of what really passed: shares are told by their bytes, masks by taking the vectors apart. It does not
use the code that decides what is revealed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256, shake_256
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from fedslm.crypto.identity import SIGNATURE_BYTES, Identity
from fedslm.crypto.prg import SecureStream
from fedslm.encoding import pack
from fedslm.errors import SignatureError
from fedslm.secagg import hospital
from fedslm.secagg.encoding import Ring
from fedslm.secagg.hospital import Confirmed, Masked, Seat, Shared
from fedslm.secagg.messages import (
    Advert,
    ConfirmRequest,
    MaskRequest,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
    confirm_body,
)
from fedslm.secagg.seeds import SEED_BYTES, mask_key
from fedslm.secagg.terms import Terms
from tests.secagg.session import SCOPE, identity, ledger_head, levels_of, name_of, sealing_key, terms_for

Sets = tuple[tuple[int, ...], tuple[int, ...]]


class Secret(NamedTuple):
    """A seed: b_u where u == v, else r_uv with u < v."""

    u: int
    v: int

    @property
    def label(self) -> str:
        return "self" if self.u == self.v else "pair"


@dataclasses.dataclass
class Account:
    """What the adversary holds of one context."""

    terms: Terms
    colluders: frozenset[int]
    seeds: dict[Secret, bytes] = dataclasses.field(default_factory=dict)
    dealt: dict[bytes, tuple[Secret, int]] = dataclasses.field(default_factory=dict)
    held: dict[Secret, dict[int, bytes]] = dataclasses.field(default_factory=lambda: defaultdict(dict))
    masks: dict[int, set[Secret]] = dataclasses.field(default_factory=dict)
    vectors: dict[int, Ring] = dataclasses.field(default_factory=dict)

    def record_dealing(self, dealer: int, seeds: bytes, shares: dict[int, bytes]) -> None:
        """Notes which bytes are whose share of what; the adversary gets those of its colluders."""
        for place, v in enumerate(range(dealer, self.terms.bounds.n + 1)):
            secret, cut = Secret(dealer, v), slice(SEED_BYTES * place, SEED_BYTES * (place + 1))
            self.seeds[secret] = seeds[cut]
            for point, share in shares.items():
                self.dealt[share[cut]] = secret, point
                if point in self.colluders:
                    self.held[secret][point] = share[cut]

    def record_masked(self, point: int, clear: Ring, masked: Ring, sharers: Iterable[int]) -> None:
        """Takes a masked vector apart: it is the clear one and exactly the masks of U2, or this fails."""
        secrets = {Secret(min(point, v), max(point, v)) for v in sharers}
        expected = clear.copy()
        for secret in secrets:
            expected += self.mask_of(secret, sign=-1 if secret.u < point else 1)
        assert np.array_equal(masked, expected)
        self.masks[point], self.vectors[point] = secrets, masked

    def mask_of(self, secret: Secret, *, sign: int = 1, seed: bytes | None = None) -> Ring:
        numbers = np.empty(self.terms.fixed_point.length, dtype="<u4")
        key = mask_key(
            secret.label, self.terms.context, secret.u, secret.v, self.seeds[secret] if seed is None else seed
        )
        SecureStream(key).fill(numbers)
        return numbers if sign > 0 else np.uint32(0) - numbers

    def record_revealed(self, reply: UnmaskReply) -> None:
        """Notes the shares a hospital gave away; anything else that it sends is an error."""
        data = reply.self_shares + reply.pair_shares
        for start in range(0, len(data), SEED_BYTES):
            share = data[start : start + SEED_BYTES]
            secret, point = self.dealt[share]
            assert point == reply.sender
            self.held[secret][point] = share

    def knows(self, secret: Secret) -> bool:
        """Whether the adversary can have a seed: a colluder is one of its ends, or there are t shares."""
        return bool({secret.u, secret.v} & self.colluders) or len(self.held[secret]) >= self.terms.bounds.threshold

    def openable(self) -> list[frozenset[int]]:
        """The least sets of honest hospitals whose vectors' sum the adversary can read, whatever it adds and subtracts.

        An unknown self seed closes its vector for good, an unknown pair seed that is in one vector only likewise; one that
        is in two vectors, once with each sign, cancels only where both are added equally often. So a combination without
        unknown masks is constant on each component of what hangs together, and zero where anything closes a member.
        """
        holders: dict[Secret, set[int]] = defaultdict(set)
        for point, secrets in self.masks.items():
            for secret in secrets:
                if not self.knows(secret):
                    holders[secret].add(point)
        parts = {point: {point} for point in self.masks}
        for points in holders.values():
            merged = set().union(*(parts[point] for point in points))
            for point in merged:
                parts[point] = merged
        closed = {point for secret, points in holders.items() if len(points) == 1 for point in points}
        return [frozenset(part) for part in {frozenset(part) for part in parts.values()} if not part & closed]

    def sum_of(self, part: Iterable[int], open_seed: dict[Secret, bytes]) -> Ring:
        """The sum of some clear vectors, as the adversary computes it from seeds that it has."""
        members = set(part)
        total = np.zeros(self.terms.fixed_point.length, dtype=np.uint32)
        for point in members:
            total += self.vectors[point]
            for secret in self.masks[point]:
                if secret.u == secret.v or not {secret.u, secret.v} <= members:
                    total -= self.mask_of(secret, sign=-1 if secret.u < point else 1, seed=open_seed[secret])
        return total


class Signer(Protocol):
    """What signs: an identity, or a stand-in for one."""

    @property
    def public(self) -> Any: ...

    def sign(self, purpose: str, body: bytes, *, signer: str, scope: bytes) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class StandIn:
    """Signs with a hash that nobody else computes: a thousand times as fast, so that a fuzzer gets further."""

    name: str

    @property
    def public(self) -> StandIn:
        return self

    def sign(self, purpose: str, body: bytes, *, signer: str, scope: bytes) -> bytes:
        message = pack(self.name.encode(), purpose.encode(), body, signer.encode(), scope)
        return shake_256(message).digest(SIGNATURE_BYTES)

    def verify(self, purpose: str, body: bytes, signature: bytes, *, signer: str, scope: bytes) -> None:
        if signature != self.sign(purpose, body, signer=signer, scope=scope):
            raise SignatureError("Not signed so.")


@functools.cache
def advert_by(signer: Callable[[str], Signer], name: str, serial: int) -> Advert:
    key = sealing_key(name, serial).public
    head = ledger_head(name, serial)
    return Advert.sign(
        cast(Identity, signer(name)), member=name, serial=serial, sealing_key=key, ledger_head=head, scope=SCOPE
    )


@functools.cache
def seat_shown(
    n: int, promised: int, least: int, session: int, version: int, signer: Callable[[str], Signer]
) -> tuple[Terms, Seat]:
    """A session in one of the versions of it that are shown around, each with its own adapter; and the seat of point 1."""
    names = [name_of(point) for point in range(1, n + 1)]
    base = terms_for(n, colluders=promised, honest=least, session=session, d=2)
    adverts = tuple(advert_by(signer, name, session) for name in names)
    terms = dataclasses.replace(base, adapter_sha256=sha256(b"%d" % version).digest(), adverts=adverts)
    keys = {name: signer(name).public for name in names}
    return terms, hospital.admit(terms, me=names[0], own_advert=adverts[0], keys=keys)


class Adversary:
    """The coordinator and its colluders against n hospitals, in sessions of two numbers shown in two versions each."""

    def __init__(
        self,
        n: int,
        *,
        promised: int,
        colluders: Iterable[int],
        least: int = 2,
        signer: Callable[[str], Signer] = identity,
    ) -> None:
        """`promised` is T of the plan and `least` h; there may really be more `colluders`, to see that the bound is tight."""
        self.n, self.colluders = n, frozenset(colluders)
        self.honest = tuple(point for point in range(1, n + 1) if point not in self.colluders)
        self.signers = {point: cast(Identity, signer(name_of(point))) for point in range(1, n + 1)}
        self.keys = {name_of(point): one.public for point, one in self.signers.items()}
        self.accounts: dict[tuple[int, int], Account] = {}
        self.places: dict[tuple[int, int], Seat] = {}
        for where in itertools.product((1, 2), (0, 1)):
            terms, self.places[where] = seat_shown(n, promised, least, *where, signer)
            self.accounts[where] = Account(terms, self.colluders)
        self.replies: dict[tuple[int, int], dict[int, SharesReply]] = {where: {} for where in self.accounts}
        self.seats: dict[tuple[int, int], int] = {}
        self.states: dict[tuple[int, int], Shared | Masked | Confirmed] = {}
        self.signatures: dict[tuple[int, int], dict[Sets, dict[int, bytes]]] = defaultdict(lambda: defaultdict(dict))
        self.signed_sets: dict[tuple[int, int], Sets] = {}

    def account(self, point: int, session: int) -> Account:
        """The account of the session of that number as it was shown to that hospital."""
        return self.accounts[session, self.seats[point, session]]

    def open(self, session: int, versions: dict[int, int]) -> None:
        """Opens a session: each honest hospital is shown one version; the colluders take part in all."""
        for point in range(1, self.n + 1):
            for version in (0, 1) if point in self.colluders else (versions[point],):
                self._share(point, session, version)

    def _share(self, point: int, session: int, version: int) -> None:
        account, name = self.accounts[session, version], name_of(point)
        terms = account.terms
        state, reply = hospital.share(
            dataclasses.replace(self.places[session, version], point=point),
            terms,
            sealing_key=sealing_key(name, session),
            identity=self.signers[point],
            next_advert=terms.adverts[point - 1],
            receipt=b"",
        )
        others = [other for other in range(1, self.n + 1) if other != point]
        shares = {point: state.own_share}
        for other, ciphertext in zip(others, reply.ciphertexts, strict=True):
            info = terms.context + bytes([point, other])
            letter = sealing_key(name_of(other), session).open(ciphertext, info=info)
            shares[other] = letter[len(info) + (SEED_BYTES if point < other else 0) :]
        account.record_dealing(point, state.seeds, shares)
        self.replies[session, version][point] = reply
        if point not in self.colluders:
            self.seats[point, session], self.states[point, session] = version, state

    def delivery(self, sender: int, receiver: int, session: int, version: int) -> tuple[bytes, bytes]:
        reply = self.replies[session, version][sender]
        return reply.shares, reply.ciphertexts[receiver - 1 - (receiver > sender)]

    def mask(self, point: int, session: int, deliveries: Iterable[tuple[bytes, bytes]], *, context: bytes) -> None:
        account, state = self.account(point, session), self.states[point, session]
        assert isinstance(state, Shared)
        clear = levels_of(account.terms, point)
        vector = clear.copy()
        request = MaskRequest(context=context, deliveries=tuple(deliveries))
        masked, _ = hospital.mask(state, request, vector, keys=self.keys)
        account.record_masked(point, clear, vector, masked.sharers)
        self.states[point, session] = masked

    def confirm(self, point: int, session: int, sets: Sets, *, context: bytes) -> None:
        state = self.states[point, session]
        assert isinstance(state, Masked)
        request = ConfirmRequest(context=context, sharers=sets[0], survivors=sets[1])
        self.states[point, session], reply = hospital.confirm(state, request, identity=self.signers[point])
        self.signatures[session, self.seats[point, session]][sets][point] = reply.signature
        self.signed_sets[point, session] = sets

    def confirmations(self, session: int, version: int, sets: Sets) -> dict[int, bytes]:
        """Everybody's signatures over two sets: those that honest hospitals gave, and all colluders'."""
        found = self.signatures[session, version][sets]
        for point in self.colluders - found.keys():
            context = self.accounts[session, version].terms.context
            body, name = confirm_body(*sets), name_of(point)
            found[point] = self.signers[point].sign("confirm", body, signer=name, scope=context)
        return found

    def unmask(self, point: int, session: int, confirmations: dict[int, bytes], *, context: bytes) -> None:
        state = self.states[point, session]
        assert isinstance(state, Confirmed)
        request = UnmaskRequest(context=context, confirmations=tuple(sorted(confirmations.items())))
        reply = hospital.unmask(state, request, keys=self.keys)
        self.account(point, session).record_revealed(reply)
        del self.states[point, session]

    def agreed(self, session: int, version: int) -> list[Sets]:
        """Sets that enough honest hospitals signed for t signatures to exist, if all colluders sign too."""
        needed = self.accounts[session, version].terms.bounds.threshold - len(self.colluders)
        signed = self.signatures[session, version].items()
        return [sets for sets, by in signed if len(by.keys() - self.colluders) >= needed]

    def leaks(self) -> Iterator[str]:
        """Every way in which the adversary can read more than it was promised it could."""
        for (session, version), account in self.accounts.items():
            agreed = self.agreed(session, version)
            if len(agreed) > 1:
                yield f"{len(agreed)} sets of survivors are agreed in session {session}, version {version}"
            allowed = {frozenset(survivors) - self.colluders for _, survivors in agreed}
            for part in account.openable():
                if part not in allowed or len(part) < account.terms.bounds.honest:
                    yield f"the sum of {sorted(part)} can be read in session {session}, version {version}"
