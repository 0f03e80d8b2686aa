"""What secure aggregation costs: `fedslm bench secagg --clients N --params D --dropouts K`.

Hospitals live in a process of their own, so that the coordinator's memory is measured by itself. Both run the objects of
the product, on one core, one after the other; no network is between them. Seconds are CPU seconds, so that other work on
the machine counts less; an AES yardstick is measured in the same run.
"""

from __future__ import annotations

import multiprocessing
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np

from fedslm.crypto.identity import Identity, PublicIdentity
from fedslm.crypto.prg import SecureStream
from fedslm.crypto.seal import SealingKey, lock, unlock
from fedslm.errors import ConfigError
from fedslm.governance.receipt import Head, Receipt
from fedslm.secagg import hospital
from fedslm.secagg.coordinator import Coordinator
from fedslm.secagg.encoding import MAX_RING_BITS, MIN_RING_BITS, Block, FixedPoint
from fedslm.secagg.messages import (
    NO_HEAD,
    Advert,
    ConfirmRequest,
    MaskRequest,
    UnmaskRequest,
)
from fedslm.secagg.terms import MAX_HOSPITALS, MIN_HOSPITALS, Bounds, Terms, advert_scope, default_colluders
from fedslm.secagg.wire import decode, encode
from simulations.benchmarks import secaggplus

YARDSTICK_BYTES = 1 << 28
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is measured.

    Attributes:
      params: numbers in the update.
      dropouts: hospitals that share and then send no vector, the costliest moment to leave.

    Raises:
      ConfigError: hospitals outside 3 to 255, ring bits outside 16 to 32, no parameters, or more dropouts than a session
        survives.
    """

    clients: int
    params: int
    dropouts: int
    ring_bits: int = 32

    def __post_init__(self) -> None:
        if not MIN_HOSPITALS <= self.clients <= MAX_HOSPITALS:
            raise ConfigError(f"--clients {self.clients}; {MIN_HOSPITALS} to {MAX_HOSPITALS} are possible.")
        if not 0 <= self.dropouts <= self.bounds.dropouts:
            raise ConfigError(
                f"--dropouts {self.dropouts}; a session of {self.clients} hospitals survives up to {self.bounds.dropouts}."
            )
        if not MIN_RING_BITS <= self.ring_bits <= MAX_RING_BITS:
            raise ConfigError(f"--ring-bits {self.ring_bits}; {MIN_RING_BITS} to {MAX_RING_BITS} are possible.")
        if self.params < 1:
            raise ConfigError(f"--params {self.params}; at least 1 is needed.")

    @property
    def bounds(self) -> Bounds:
        """The default promise."""
        return Bounds(n=self.clients, colluders=default_colluders(self.clients), honest=2)

    @property
    def fixed_point(self) -> FixedPoint:
        """One block."""
        block = Block(name="update", length=self.params, value_range=4.0)
        return FixedPoint(ring_bits=self.ring_bits, parties=self.clients, blocks=(block,))

    def terms(self, adverts: tuple[Advert, ...]) -> Terms:
        """A session of these adverts."""
        return Terms(
            run_id="bench",
            session=1,
            round=1,
            plan_sha256=bytes(32),
            roster_sha256=bytes(32),
            adverts=adverts,
            bounds=self.bounds,
            min_cohort=MIN_HOSPITALS,
            fixed_point=self.fixed_point,
            adapter_sha256=bytes(32),
            config_sha256=bytes(32),
        )


def measure(load: Load, *, with_flower: bool = True) -> dict[str, Any]:
    """Runs one session, and the same with Flower's SecAgg+.

    Returns:
      `client_s` a hospital (mean), `client_max_s`, `server_s`, `bytes_per_client` sent (largest), `bytes_to_client` received
      (largest), `server_peak_bytes`, `aes_gb_s`, and `flower_secaggplus_s` with `ratio_to_flower` (None where left out).
    """
    found = {**_session(load), "aes_gb_s": aes_gb_s()}
    ours = load.clients * found["client_s"] + found["server_s"]
    theirs = _flower(load) if with_flower else None
    return {
        "clients": load.clients,
        "params": load.params,
        "dropouts": load.dropouts,
        "ring_bits": load.ring_bits,
        **found,
        "total_s": ours,
        "flower_secaggplus_s": theirs,
        "ratio_to_flower": None if theirs is None else theirs / ours,
    }


def aes_gb_s() -> float:
    """The yardstick: AES-256-CTR keystream, one core, in GB/s."""
    stream, buffer = SecureStream(bytes(32)), np.empty(1 << 15, dtype="<u4")
    started = time.process_time()
    for _ in range(YARDSTICK_BYTES // buffer.nbytes):
        stream.fill(buffer)
    return YARDSTICK_BYTES / (time.process_time() - started) / 1e9


def _flower(load: Load) -> float:
    return secaggplus.measure(
        clients=load.clients, params=load.params, dropouts=load.dropouts, threshold=load.bounds.threshold
    )


def _session(load: Load) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_hospitals, args=(load, there), daemon=True)
    process.start()
    there.close()  # so that the end of that process ends the wait for it
    tracemalloc.start()
    try:
        return _coordinate(load, here)
    finally:
        tracemalloc.stop()
        here.close()
        process.join(timeout=10)


class _Clock:
    """Adds up the coordinator's seconds and remembers the most memory that it held."""

    def __init__(self) -> None:
        self.seconds, self.peak_bytes = 0.0, 0

    def run(self, call: Callable[[], Result]) -> Result:
        tracemalloc.reset_peak()
        started = time.process_time()
        result = call()
        self.seconds += time.process_time() - started
        self.peak_bytes = max(self.peak_bytes, tracemalloc.get_traced_memory()[1])
        return result


def _coordinate(load: Load, pipe: Connection) -> dict[str, Any]:
    """The coordinator's part; what a hospital does happens in the other process between two of its calls."""
    pipe.send_bytes(b"adverts")
    keys = {_name(point): PublicIdentity.from_bytes(pipe.recv_bytes()) for point in range(1, load.clients + 1)}
    adverts = tuple(decode(Advert, pipe.recv_bytes()) for _ in range(load.clients))
    clock = _Clock()
    terms = load.terms(adverts)
    coordinator = clock.run(lambda: Coordinator(terms, keys=keys))
    for point in range(1, load.clients + 1):
        shares = _ask(pipe, b"share", point, b"")
        clock.run(lambda: coordinator.shares(point, shares))  # noqa: B023
    requests = clock.run(coordinator.mask_requests)
    while (request := clock.run(lambda: next(requests, None))) is not None:
        point, data = request
        masked = _ask(pipe, b"mask", point, data)
        if point > load.dropouts:
            clock.run(lambda: coordinator.masked(point, masked))  # noqa: B023
        del masked, data, request
    confirm = clock.run(coordinator.confirm_request)
    for point in coordinator.survivors:
        confirmed = _ask(pipe, b"confirm", point, confirm)
        clock.run(lambda: coordinator.confirmed(point, confirmed))  # noqa: B023
    unmask = clock.run(coordinator.unmask_request)
    for point in coordinator.confirmers:
        revealed = _ask(pipe, b"unmask", point, unmask)
        clock.run(lambda: coordinator.revealed(point, revealed))  # noqa: B023
    count = len(coordinator.survivors)
    clock.run(lambda: load.fixed_point.decode(coordinator.finish(), count=count, divisor=count))
    return {**_report(pipe), "server_s": clock.seconds, "server_peak_bytes": clock.peak_bytes}


def _ask(pipe: Connection, step: bytes, point: int, data: bytes) -> bytes:
    pipe.send_bytes(step)
    pipe.send_bytes(bytes([point]))
    pipe.send_bytes(data)
    return pipe.recv_bytes()


def _report(pipe: Connection) -> dict[str, Any]:
    pipe.send_bytes(b"report")
    seconds, most_s, sent, received = np.frombuffer(pipe.recv_bytes(), dtype=np.float64)
    return {
        "client_s": float(seconds),
        "client_max_s": float(most_s),
        "bytes_per_client": int(sent),
        "bytes_to_client": int(received),
    }


def _name(point: int) -> str:
    return f"hospital-{point:03d}"


class _Hospital:
    """One hospital with its costs."""

    def __init__(self, load: Load, point: int) -> None:
        self.name, self._load, self._point = _name(point), load, point
        self.identity = Identity.generate()
        self.seconds, self.sent, self.received = 0.0, 0, 0
        self.advert, self._sealing_key = self._new_advert(1)
        self._state: Any = None

    def _new_advert(self, serial: int) -> tuple[Advert, SealingKey]:
        sealing_key, scope = SealingKey.generate(), advert_scope(bytes(32), bytes(32))
        advert = Advert.sign(
            self.identity,
            member=self.name,
            serial=serial,
            sealing_key=sealing_key.public,
            ledger_head=NO_HEAD,
            scope=scope,
        )
        return advert, sealing_key

    def answer(self, step: bytes, data: bytes, terms: Terms, keys: dict[str, PublicIdentity]) -> bytes:
        steps = {b"share": self._share, b"mask": self._mask, b"confirm": self._confirm, b"unmask": self._unmask}
        update = np.random.default_rng(self._point).normal(0, 0.01, self._load.params) if step == b"share" else None
        started = time.process_time()
        reply = steps[step](data, terms, keys, update)
        self.seconds += time.process_time() - started
        self.received += len(data)
        self.sent += len(reply)
        return reply

    def _share(self, _: bytes, terms: Terms, keys: dict[str, PublicIdentity], update: Any) -> bytes:
        """As in the product: the encoded update waits on disk, locked under a key of the session."""
        seat = hospital.admit(terms, me=self.name, own_advert=self.advert, keys=keys)
        levels = terms.fixed_point.encode(update, SecureStream.from_os())
        self._key = SecureStream.from_os().uint64(4).tobytes()
        self._waiting = lock(self._key, levels, associated=seat.context)
        next_advert, _next_key = self._new_advert(2)
        head = Head(ledger=bytes(32).hex(), row=3, sha256=bytes(32).hex())
        receipt = Receipt.sign(self.identity, hospital=self.name, head=head, run=bytes(32).hex(), session=1)
        self._state, reply = hospital.share(
            seat,
            terms,
            sealing_key=self._sealing_key,
            identity=self.identity,
            next_advert=next_advert,
            receipt=receipt.to_bytes(),
        )
        return encode(reply)

    def _mask(self, data: bytes, terms: Terms, keys: dict[str, PublicIdentity], _: Any) -> bytes:
        levels = np.frombuffer(bytearray(unlock(self._key, self._waiting, associated=terms.context)), dtype=np.uint32)
        self._waiting = b""
        self._state, reply = hospital.mask(self._state, decode(MaskRequest, data), levels, keys=keys)
        return encode(reply)

    def _confirm(self, data: bytes, _terms: Terms, _keys: dict[str, PublicIdentity], _: Any) -> bytes:
        self._state, reply = hospital.confirm(self._state, decode(ConfirmRequest, data), identity=self.identity)
        return encode(reply)

    def _unmask(self, data: bytes, _terms: Terms, keys: dict[str, PublicIdentity], _: Any) -> bytes:
        return encode(hospital.unmask(self._state, decode(UnmaskRequest, data), keys=keys))


def _hospitals(load: Load, pipe: Connection) -> None:
    """All hospitals, in a process of their own, answering one request after the other."""
    members = [_Hospital(load, point) for point in range(1, load.clients + 1)]
    keys = {member.name: member.identity.public for member in members}
    terms = load.terms(tuple(member.advert for member in members))
    while (step := pipe.recv_bytes()) != b"report":
        if step == b"adverts":
            for data in [key.to_bytes() for key in keys.values()] + [encode(member.advert) for member in members]:
                pipe.send_bytes(data)
            continue
        member = members[pipe.recv_bytes()[0] - 1]
        pipe.send_bytes(member.answer(step, pipe.recv_bytes(), terms, keys))
    seconds = [member.seconds for member in members if member.seconds]
    sent, received = max(member.sent for member in members), max(member.received for member in members)
    pipe.send_bytes(np.array([np.mean(seconds), max(seconds), sent, received]).tobytes())
