"""A session of secure aggregation in memory, for tests: hospitals that exist once, and one object that drives the steps.

Whatever passes between the parties passes as bytes, and what a hospital keeps is written and read back between its steps,
as in a deployment.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from hashlib import sha256, sha512
from typing import TypeVar

import numpy as np

from fedslm.crypto.identity import Identity, PublicIdentity
from fedslm.crypto.prg import SecureStream
from fedslm.crypto.seal import SealingKey
from fedslm.secagg import hospital
from fedslm.secagg.coordinator import Coordinator
from fedslm.secagg.encoding import Block, FixedPoint, Ring
from fedslm.secagg.hospital import Confirmed, Masked, Seat, Shared
from fedslm.secagg.messages import Advert, ConfirmRequest, MaskRequest, UnmaskRequest
from fedslm.secagg.terms import Bounds, Terms, advert_scope
from fedslm.secagg.wire import Document, decode, encode

PLAN, ROSTER = sha256(b"plan").digest(), sha256(b"roster").digest()
SCOPE = advert_scope(PLAN, ROSTER)

Points = Iterable[int] | None
State = TypeVar("State", bound=Document)


def name_of(point: int) -> str:
    """The hospitals of all tests, in the order of their points."""
    return f"hospital-{point:03d}"


@functools.cache
def identity(name: str) -> Identity:
    """One identity a name; the same in every run."""
    return Identity.from_seeds(sha256(b"ed25519 " + name.encode()).digest(), sha256(b"mldsa " + name.encode()).digest())


@functools.cache
def public(name: str) -> PublicIdentity:
    return identity(name).public


def roster(n: int) -> dict[str, PublicIdentity]:
    return {name_of(point): public(name_of(point)) for point in range(1, n + 1)}


@functools.cache
def sealing_key(name: str, serial: int) -> SealingKey:
    """The private half of a hospital's advert; the same in every run."""
    tag = f"{name} {serial}".encode()
    return SealingKey.from_bytes(sha512(b"mlkem " + tag).digest() + sha256(b"x25519 " + tag).digest())


def ledger_head(name: str, row: int) -> bytes:
    """The head of a hospital's ledger when it ends at that row."""
    ledger, last = (sha256(f"{name} row {number}".encode()).digest() for number in (1, row))
    return ledger + row.to_bytes(8, "big") + last


def advert(name: str, serial: int = 1, scope: bytes = SCOPE) -> Advert:
    """A hospital's advert; signed once a test run, as ML-DSA signs differently each time."""
    return _advert(name, serial, scope)


@functools.cache
def _advert(name: str, serial: int, scope: bytes) -> Advert:
    key = sealing_key(name, serial).public
    head = ledger_head(name, serial)
    return Advert.sign(identity(name), member=name, serial=serial, sealing_key=key, ledger_head=head, scope=scope)


def fixed_point(n: int, *, d: int = 5, bits: int = 32) -> FixedPoint:
    block = Block(name="update", length=d, value_range=4.0)
    return FixedPoint(ring_bits=bits, parties=n, blocks=(block,))


def terms_for(n: int, *, colluders: int = 0, honest: int = 2, session: int = 1, d: int = 5, bits: int = 32) -> Terms:
    """Terms that every test starts from; `dataclasses.replace` changes the rest."""
    return Terms(
        run_id="run",
        session=session,
        round=1,
        plan_sha256=PLAN,
        roster_sha256=ROSTER,
        adverts=tuple(advert(name_of(point), session) for point in range(1, n + 1)),
        bounds=Bounds(n=n, colluders=colluders, honest=honest),
        min_cohort=3,
        fixed_point=fixed_point(n, d=d, bits=bits),
        adapter_sha256=sha256(b"adapter").digest(),
        config_sha256=sha256(b"config").digest(),
    )


def kept(state: State) -> State:
    """A state after a stay on the disk."""
    return decode(type(state), encode(state))


def levels_of(terms: Terms, point: int) -> Ring:
    """Levels anywhere in a hospital's range; other for every hospital."""
    stream = SecureStream(sha256(b"levels" + terms.context + bytes([point])).digest())
    return stream.below(terms.fixed_point.max_level + 1, terms.fixed_point.length).astype(np.uint32)


def ring_equal(a: Ring, b: Ring, bits: int) -> bool:
    return bool(np.all((a ^ b) & np.uint32(2**bits - 1) == 0))


class Session:
    """One session; methods named after what one party does, in order. Nobody does anything unasked."""

    def __init__(self, terms: Terms, *, draw: Callable[[int], bytes] = os.urandom) -> None:
        self.terms, self.draw = terms, draw
        self.keys = roster(terms.bounds.n)
        self.coordinator = Coordinator(terms, keys=self.keys)
        self.levels = {point: levels_of(terms, point) for point in self.points}
        self.states: dict[int, Shared | Masked | Confirmed] = {}

    @property
    def points(self) -> range:
        return range(1, self.terms.bounds.n + 1)

    def seat(self, point: int) -> Seat:
        own = self.terms.adverts[point - 1]
        return hospital.admit(self.terms, me=own.member, own_advert=own, keys=self.keys)

    def share(self, point: int) -> bytes:
        name = self.terms.names[point - 1]
        self.states[point], reply = hospital.share(
            self.seat(point),
            self.terms,
            sealing_key=sealing_key(name, self.terms.adverts[point - 1].serial),
            identity=identity(name),
            next_advert=advert(name, self.terms.session + 1),
            receipt=b"",
            draw=self.draw,
        )
        return encode(reply)

    def mask(self, point: int, request: bytes) -> bytes:
        state = self.states[point]
        assert isinstance(state, Shared)
        vector = self.levels[point].copy()
        self.states[point], reply = hospital.mask(kept(state), decode(MaskRequest, request), vector, keys=self.keys)
        return encode(reply)

    def confirm(self, point: int, request: bytes) -> bytes:
        state = self.states[point]
        assert isinstance(state, Masked)
        self.states[point], reply = hospital.confirm(
            kept(state), decode(ConfirmRequest, request), identity=identity(self.terms.names[point - 1])
        )
        return encode(reply)

    def unmask(self, point: int, request: bytes) -> bytes:
        state = self.states[point]
        assert isinstance(state, Confirmed)
        return encode(hospital.unmask(kept(state), decode(UnmaskRequest, request), keys=self.keys))

    def after_shares(self, points: Points = None) -> dict[int, bytes]:
        """Every hospital shares, those at `points` get through; the mask requests."""
        for point in self.points:
            reply = self.share(point)
            if points is None or point in points:
                self.coordinator.shares(point, reply)
        return dict(self.coordinator.mask_requests())

    def after_masks(self, requests: dict[int, bytes], points: Points = None) -> bytes:
        """Every sharer masks, the vectors of those at `points` arrive; the confirm request."""
        for point, request in requests.items():
            reply = self.mask(point, request)
            if points is None or point in points:
                self.coordinator.masked(point, reply)
        return self.coordinator.confirm_request()

    def after_confirmations(self, request: bytes, points: Points = None) -> bytes:
        """Every survivor confirms, those at `points` get through; the unmask request."""
        for point in self.coordinator.survivors:
            reply = self.confirm(point, request)
            if points is None or point in points:
                self.coordinator.confirmed(point, reply)
        return self.coordinator.unmask_request()

    def total(self, request: bytes, points: Points = None) -> Ring:
        """Every confirmer reveals, those at `points` get through; the sum."""
        for point in self.coordinator.confirmers:
            reply = self.unmask(point, request)
            if points is None or point in points:
                self.coordinator.revealed(point, reply)
        return self.coordinator.finish()

    def run(
        self, sharers: Points = None, survivors: Points = None, confirmers: Points = None, answerers: Points = None
    ) -> Ring:
        """A whole session in which those not named at a step drop out there."""
        requests = self.after_shares(sharers)
        to_confirm = self.after_masks(requests, survivors)
        return self.total(self.after_confirmations(to_confirm, confirmers), answerers)

    def expected(self, survivors: Iterable[int]) -> Ring:
        """The sum of the clear levels."""
        total = np.zeros(self.terms.fixed_point.length, dtype=np.uint32)
        for point in survivors:
            total += self.levels[point]
        return total


def with_adverts(terms: Terms, adverts: Iterable[Advert]) -> Terms:
    """The same session with other adverts; bounds and fixed point for their number."""
    chosen = tuple(adverts)
    bounds = dataclasses.replace(terms.bounds, n=len(chosen))
    fixed = dataclasses.replace(terms.fixed_point, parties=len(chosen))
    return dataclasses.replace(terms, adverts=chosen, bounds=bounds, fixed_point=fixed)
