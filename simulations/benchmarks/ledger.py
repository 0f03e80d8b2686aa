"""What the ledger costs: verifying it, booking a session in it, and composing what was booked."""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clients.ledger import open_ledger
from clients.site import RecordSource, Site
from fedslm.config.schema import FedAvgConfig, ModelConfig
from fedslm.crypto.identity import Identity
from fedslm.errors import ConfigError
from fedslm.governance.keyfiles import write_identity
from fedslm.governance.plan import Plan, PlannedAdapter, PlannedHospital, PlannedPrivacy, PlannedTraining
from fedslm.governance.receipt import sign_head
from fedslm.privacy.composition import Composition
from fedslm.privacy.ledger import Booked, Entry, Export, Ledger, Opened
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.planned import planned_reservation
from simulations.benchmarks.secagg import aes_gb_s

HOSPITAL = "hospital"
POPULATION = 10_000
SESSIONS = 1_000
ROUNDS, KINDS = 1_000, 10
REPEATS = 21
TIME = "2026-01-01T00:00:00Z"


def measure(sessions: int = SESSIONS) -> dict[str, Any]:
    """Measures a ledger with so many sessions in it.

    Returns:
      Wall-clock medians: `verify_s` reading and verifying an export, `sqlite_s` the transaction of a booking, `booking_s` a
      whole booking of a process that has started, `compose_s` and `one_more_s`; `fsync_s` and `aes_gb_s` are yardsticks.
    Raises:
      ConfigError: fewer than one session.
    """
    if sessions < 1:
        raise ConfigError(f"--sessions is {sessions}; measure a ledger with at least 1.")
    with tempfile.TemporaryDirectory() as folder:
        site, plan, export = _filled(Path(folder), sessions)
        data, key = export.to_bytes(), export.rows[0].entry.key  # type: ignore[union-attr]
        compose_s, one_more_s = _composition()
        return {
            "sessions": sessions,
            "export_bytes": len(data),
            "verify_s": _median(lambda: Export.from_bytes(data).verify(key), repeats=5),
            "booking_s": _median(lambda: _book(site, plan)),
            "sqlite_s": _sqlite_s(Path(folder) / "state" / "patients.sqlite"),
            "compose_s": compose_s,
            "one_more_s": one_more_s,
            "fsync_s": _fsync_s(Path(folder)),
            "aes_gb_s": aes_gb_s(),
        }


def _filled(folder: Path, sessions: int) -> tuple[Site, Plan, Export]:
    """A hospital in whose ledger so many sessions are booked."""
    identity, plan = Identity.generate(), _plan(sessions)
    write_identity(folder / "identity.pem", identity, None, name=HOSPITAL)
    site = Site(
        hospital=HOSPITAL,
        sources=(RecordSource(kind="embedded"),),
        unit="patient",
        declared_population=POPULATION,
        budget_epsilon=plan.privacy.epsilon or 1.0,
        identity=str(folder / "identity.pem"),
        state_folder=str(folder / "state"),
        anchor_file=str(folder / "anchor"),
        allow_unmasked=True,
    )
    export = _export(identity, plan, sessions)
    with open_ledger(site) as ledger:
        ledger.restore(export, forfeits=False)
    return site, plan, export


def _export(identity: Identity, plan: Plan, sessions: int) -> Export:
    """What a hospital's own bookings would come to, without a write through to the disk for each."""
    ledger = Ledger()
    opened = Opened(
        hospital=HOSPITAL,
        population="patients",
        unit="patient",
        identity=identity.public.to_bytes().hex(),
        nonce="0" * 32,
    )
    epsilon, delta = plan.privacy.epsilon, plan.privacy.delta
    reserved = planned_reservation(plan, HOSPITAL, coordinator="", budget_epsilon=epsilon, budget_delta=delta)
    booked = [Booked(plan=plan.sha256, session=number) for number in range(1, sessions + 1)]
    entries: list[Entry] = [opened, reserved, *booked]
    signatures = [_append(ledger, entry, identity) for entry in entries]
    return Export(rows=tuple(ledger.rows), signatures=tuple(signatures))


def _append(ledger: Ledger, entry: Entry, identity: Identity) -> tuple[int, bytes]:
    ledger.add(ledger.check(entry, TIME))
    return ledger.head.row, sign_head(identity, ledger.head, hospital=HOSPITAL)


def _book(site: Site, plan: Plan) -> None:
    with open_ledger(site) as ledger:
        ledger.book(plan, coordinator="")


def _sqlite_s(path: Path) -> float:
    """The statements of one booking, on the same file: two rows, written through."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous = FULL")
    (newest,) = db.execute("SELECT MAX(number) FROM ledger").fetchone()
    numbers = iter(range(newest + 1, newest + 1 + REPEATS))

    def write() -> None:
        number = next(numbers)
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO ledger VALUES (?, ?)", (number, bytes(300)))
        db.execute("INSERT INTO signatures VALUES (?, ?)", (number, bytes(3373)))
        db.execute("COMMIT")

    seconds = _median(write)
    db.close()
    return seconds


def _composition() -> tuple[float, float]:
    """1,000 rounds of 10 kinds, and one more round of one of them."""
    kinds = [_mechanism(noise_multiplier=1.0 + 0.05 * kind) for kind in range(KINDS)]
    composition = Composition()
    started = time.perf_counter()
    for number in range(ROUNDS):
        composition.add(kinds[number % KINDS])
    composition.epsilon(delta=1e-6)
    composed = time.perf_counter()
    composition.add(kinds[-1])
    composition.epsilon(delta=1e-6)
    return composed - started, time.perf_counter() - composed


def _mechanism(*, noise_multiplier: float) -> Mechanism:
    return Mechanism(
        unit="patient",
        sample_rate=0.01,
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        steps=4,
        declared_population=POPULATION,
    )


def _fsync_s(folder: Path) -> float:
    """The yardstick: one small write that has reached the disk."""
    with (folder / "yardstick").open("wb") as file:

        def write() -> None:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

        return _median(write)


def _median(work: Callable[[], object], *, repeats: int = REPEATS) -> float:
    return statistics.median(_timed(work) for _ in range(repeats))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plan(sessions: int) -> Plan:
    """A plan in the clear that has room for the sessions that are booked while it is measured."""
    return Plan(
        version=3,
        nonce="0" * 32,
        model=ModelConfig(name="none", source="/none", max_length_tokens=32),
        adapter=PlannedAdapter(
            method="ffa",
            rank=1,
            alpha=1.0,
            targets=("q_proj",),
            initial_sha256="0" * 64,
            frozen_sha256="0" * 64,
            trained_parameters=1_000_000,
        ),
        privacy=PlannedPrivacy(
            mode="local",
            epsilon=8.0,
            delta=1e-6,
            unit="patient",
            clip_norm=1.0,
            noise_multiplier=2.0,
            sample_rate=0.01,
            max_records_per_unit=1,
            max_records_per_patient=None,
            max_sessions=sessions + 10 * REPEATS,
            scores=None,
        ),
        training=PlannedTraining(rounds=sessions, local_steps=1, learning_rate=1.0, optimizer="sgd", proximal_mu=0.0),
        strategy=FedAvgConfig(name="fedavg"),
        hospitals=(PlannedHospital(name=HOSPITAL, declared_population=POPULATION, weight=1.0),),
        min_cohort=1,
        secagg=None,
        deadline_s=60.0,
    )
