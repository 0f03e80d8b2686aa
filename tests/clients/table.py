"""A coordinator and some hospitals at one table: the hospitals' real app, message by message, without a model.

Each hospital has its own folder, identity and Flower context. The training is replaced: every hospital has an update of six
numbers to give.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Context, Message, RecordDict

from clients.app import build_client_app
from clients.records import Records
from clients.site import SIMULATION_KEY, SITE_FILE_KEY, RecordSource, Site
from clients.train import Workbench
from fedslm.crypto.identity import Identity
from fedslm.data.example import Example
from fedslm.encoding import arrays_sha256
from fedslm.flower.compat import become_task
from fedslm.flower.records import (
    ABORT,
    ARRAYS,
    CONFIG,
    CONFIRM,
    FROZEN,
    JOIN,
    MASK,
    SECAGG,
    TRAIN,
    UNMASK,
    TrainRequest,
    adapter_sha256,
    config_sha256,
    error_name,
    plan_config,
    put_secagg,
    secagg_bytes,
    to_array_record,
)
from fedslm.flower.sessions import session_terms
from fedslm.governance.plan import Plan
from fedslm.governance.receipt import Head
from fedslm.governance.roster import Member, read_roster, sign_plan, sign_roster
from fedslm.secagg.coordinator import Coordinator
from fedslm.secagg.messages import AbortReply, AbortRequest, Advert, Invitation, JoinReply, Opening
from fedslm.secagg.terms import default_colluders
from fedslm.secagg.wire import decode, encode
from simulations.identities import ROSTER_FILE, Identities, with_identities
from tests.builders import masked_plan, toy_hospitals

Arrays = dict[str, np.ndarray[Any, Any]]
Adapter = tuple[Arrays, Arrays]

D = 6
ONE, TWO, THREE = NAMES = ("hospital-0", "hospital-1", "hospital-2")
STEPS = (TRAIN, MASK, CONFIRM, UNMASK)
KEPT = {"state.key", "patients.key", "patients.sqlite"}
FIRST: Adapter = ({"a": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}, {"f": np.ones(3, np.float32)})
OTHER: Adapter = ({"a": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}, {"f": np.ones(3, np.float32)})


def plan_for(hospitals: int = 3, **changes: Any) -> Plan:
    """A masked plan for so many hospitals of different weights; floor((n-1)/3) of them may collude."""
    members = tuple(
        dataclasses.replace(hospital, weight=weight)
        for hospital, weight in zip(toy_hospitals(hospitals), (1.0, 0.5, 0.25, 0.75, 1.0), strict=False)
    )
    secagg = {"colluders": default_colluders(hospitals), **changes.pop("secagg", {})}
    trained, frozen = FIRST
    adapter = {
        "trained_parameters": D,
        "initial_sha256": arrays_sha256({**trained, **frozen}),
        "frozen_sha256": arrays_sha256(frozen),
    }
    return masked_plan(hospitals=members, secagg=secagg, adapter=adapter, **changes)


class _NoModel(Workbench):
    """A workbench without a model, on which lies one patient's record."""

    def records(self, site: Site) -> Records:
        """The same for every site."""
        return Records(train=(Example(prompt="cough", completion="cold", patient_id="p1"),), held_out=())


class Table:
    """Hospitals around a test that plays the coordinator.

    Attributes:
      updates: what each hospital's training gives; None makes it fail.
      trained: the hospitals that trained, in order.
      replies: every reply that left a hospital, with its hospital and the type of the request.
      adverts: the newest advert of each hospital that the coordinator has, encoded.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        monkeypatch: pytest.MonkeyPatch,
        *,
        seed: int | None = 7,
        identities: Identities | None = None,
    ) -> None:
        become_task()
        self.folder = folder
        self.plan = plan
        self.identities = identities or Identities.draw(plan)
        if not (folder / ROSTER_FILE).exists():
            self.identities.write(folder)
        self.roster = read_roster(self.identities.roster)
        sites = with_identities(tuple(_site(name, plan, seed) for name in plan.names), folder)
        self.sites = dict(zip(plan.names, sites, strict=True))
        self.contexts = {name: self._context(name) for name in plan.names}
        rng = np.random.default_rng(3)
        self.updates: dict[str, Arrays | None] = {
            name: {key: rng.normal(0, 0.5, array.shape).astype(np.float32) for key, array in FIRST[0].items()}
            for name in plan.names
        }
        self.trained: list[str] = []
        self.replies: list[tuple[str, str, Message]] = []
        self.adverts: dict[str, bytes] = {}
        self.app = build_client_app(_NoModel())
        monkeypatch.setattr("clients.train.train_round", self._train)

    # --- one message --------------------------------------------------------------------------------------------

    def message(self, kind: str, data: bytes = b"", *, plan: Plan | None = None, **config: Any) -> Message:
        """A request as the coordinator signs it."""
        signed = {"signature": self.identities.plan_signature, "roster_sha256": bytes.fromhex(self.roster.sha256)}
        record = plan_config(plan or self.plan, **signed)
        record.update(config)
        content = RecordDict({CONFIG: record})
        if data:
            content[SECAGG] = put_secagg(data)
        return Message(content, 1, kind)

    def send(self, name: str, message: Message) -> Message:
        """Hands a hospital a message and takes its reply."""
        reply = self.app(copy.deepcopy(message), self.contexts[name])
        self.replies.append((name, message.metadata.message_type, reply))
        return reply

    def ask(self, name: str, kind: str, data: bytes) -> Message:
        """One exchange after the training."""
        return self.send(name, self.message(kind, data))

    def invite(self, name: str, *, own: bytes = b"", known: Mapping[str, Head] | None = None) -> Message:
        """Invites a hospital: `own` is a proof of its newest head, `known` what the coordinator knows of others."""
        heads = tuple((member, head.to_bytes()) for member, head in (known or {}).items())
        return self.send(name, self.message(JOIN, encode(Invitation(known=heads, own=own))))

    def join(self, *names: str) -> None:
        """Has hospitals give out fresh adverts."""
        for name in names or self.plan.names:
            self.adverts[name] = decode(JoinReply, secagg_bytes(self.invite(name))).advert

    def opening(
        self,
        number: int,
        *,
        round: int = 1,
        attempt: int = 0,
        aborts: Iterable[AbortReply] = (),
        names: Collection[str] = (),
    ) -> Opening:
        """The opening of a session with the adverts at hand."""
        members = sorted(names or self.adverts)
        given_up = tuple((abort.session, abort.member, abort.signature) for abort in aborts)
        adverts = tuple(self.adverts[name] for name in members)
        return Opening(session=number, round=round, attempt=attempt, adverts=adverts, aborts=given_up)

    def train_message(self, opening: Opening, *, adapter: Adapter = FIRST, **config: Any) -> Message:
        """The training message of a session."""
        told = {"server-round": opening.round, "session": opening.session, "attempt": opening.attempt, **config}
        message = self.message(TRAIN, encode(opening), **told)
        message.content[ARRAYS], message.content[FROZEN] = (to_array_record(half) for half in adapter)
        return message

    # --- a session ----------------------------------------------------------------------------------------------

    def start(self, number: int, **more: Any) -> Session:
        """Opens a session and has everybody train and share."""
        session = Session(self, self.opening(number, **more))
        session.train()
        return session

    def run(
        self, number: int, *, lose: Mapping[str, Collection[str]] | None = None, **more: Any
    ) -> np.ndarray[Any, Any]:
        """A whole session; `lose` names who does not get which message. Returns the decoded sum."""
        lost = lose or {}
        session = Session(self, self.opening(number, **more))
        session.train(but=lost.get(TRAIN, ()))
        session.mask(but=lost.get(MASK, ()))
        session.confirm(but=lost.get(CONFIRM, ()))
        return session.unmask(but=lost.get(UNMASK, ()))

    def expected(self, *names: str) -> np.ndarray[Any, Any]:
        """The weighted sum of those hospitals' updates, as a vector."""
        parts = []
        for name in names or self.plan.names:
            update = self.updates[name]
            assert update is not None
            flat = np.concatenate([update[key].ravel() for key in sorted(update)]).astype(np.float64)
            parts.append(self.plan.hospital(name).weight * flat)
        return np.sum(parts, axis=0)

    def files(self, name: str) -> set[str]:
        """What lies in a hospital's state folder, but SQLite's own side files."""
        folder = Path(self.sites[name].state_folder or "")
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {path for path in found if not path.endswith(("-wal", "-shm"))}

    def state(self, name: str) -> dict[str, bytes]:
        """The locked pieces in a hospital's Flower state, by name."""
        records = self.contexts[name].state.config_records
        return {slot: data for record in records.values() for slot, data in record.items() if isinstance(data, bytes)}

    def change_site(self, name: str, **changes: Any) -> None:
        """Rewrites a hospital's site file."""
        self.sites[name] = dataclasses.replace(self.sites[name], **changes)
        _write(self.sites[name], Path(str(self.contexts[name].node_config[SITE_FILE_KEY])))

    def forget(self, name: str) -> None:
        """Flower's state of a hospital is lost, as when its node restarts."""
        self.contexts[name] = self._context(name)

    def _context(self, name: str) -> Context:
        path = self.folder / f"{name}.yaml"
        _write(self.sites[name], path)
        return Context(
            run_id=1,
            node_id=1,
            node_config={SITE_FILE_KEY: str(path), SIMULATION_KEY: "true"},
            state=RecordDict(),
            run_config={},
        )

    def _train(self, request: TrainRequest, site: Site, bench: object) -> Arrays:
        self.trained.append(site.hospital)
        update = self.updates[site.hospital]
        if update is None:
            raise ValueError("zq7Xylophone")
        return update


class Session:
    """One session of a table, step by step. A hospital that refuses is out; its error's name is in `refused`."""

    def __init__(self, table: Table, opening: Opening, *, adapter: Adapter = FIRST) -> None:
        self.table = table
        self.opening = opening
        self.message = table.train_message(opening, adapter=adapter)
        self.terms = session_terms(
            table.plan,
            opening,
            roster_sha256=bytes.fromhex(table.roster.sha256),
            adapter_sha256=adapter_sha256(*adapter),
            config_sha256=config_sha256(self.message),
        )
        self.names = self.terms.names
        self.coordinator = Coordinator(self.terms, keys=table.roster.keys)
        self.refused: dict[str, str] = {}

    def point(self, name: str) -> int:
        """A hospital's point."""
        return self.names.index(name) + 1

    def name(self, point: int) -> str:
        """The hospital at a point."""
        return self.names[point - 1]

    def train(self, *, but: Collection[str] = ()) -> None:
        """Step 1."""
        for name in self.names:
            self.table.adverts.pop(name, None)
            if name not in but and (data := self._data(name, self.table.send(name, self.message))):
                advert = self.coordinator.shares(self.point(name), data)
                assert isinstance(advert, Advert)
                self.table.adverts[name] = encode(advert)

    def mask(self, *, but: Collection[str] = ()) -> None:
        """Step 2."""
        for point, request in self.coordinator.mask_requests():
            if self.name(point) not in but and (data := self._ask(self.name(point), MASK, request)):
                self.coordinator.masked(point, data)

    def confirm(self, *, but: Collection[str] = ()) -> None:
        """Step 3."""
        request = self.coordinator.confirm_request()
        for point in self.coordinator.survivors:
            if self.name(point) not in but and (data := self._ask(self.name(point), CONFIRM, request)):
                self.coordinator.confirmed(point, data)

    def unmask(self, *, but: Collection[str] = ()) -> np.ndarray[Any, Any]:
        """Step 4; the decoded sum."""
        request = self.coordinator.unmask_request()
        for point in self.coordinator.confirmers:
            if self.name(point) not in but and (data := self._ask(self.name(point), UNMASK, request)):
                self.coordinator.revealed(point, data)
        total = self.coordinator.finish()
        return self.terms.fixed_point.decode(total, count=len(self.coordinator.survivors))

    @property
    def steps(self) -> list[Callable[..., Any]]:
        """The four steps, in order; the last one returns the sum."""
        return [self.train, self.mask, self.confirm, self.unmask]

    def abort(self, *names: str) -> list[AbortReply]:
        """Has hospitals give the session up; those that refuse are not in the list."""
        request = encode(AbortRequest(session=self.opening.session))
        found = [self._ask(name, ABORT, request) for name in names or self.names]
        return [decode(AbortReply, data) for data in found if data]

    def _ask(self, name: str, kind: str, request: bytes) -> bytes:
        return self._data(name, self.table.ask(name, kind, request))

    def _data(self, name: str, reply: Message) -> bytes:
        if refused := code(reply):
            self.refused[name] = refused
            return b""
        return secagg_bytes(reply)


def drawn_again(table: Table, plan: Plan) -> Identities:
    """The same hospitals in the consortium of another plan."""
    drawn, hospitals = Identities.draw(plan), table.identities.hospitals
    coordinator, root = Identity.generate(), Identity.generate()
    roster = dataclasses.replace(
        read_roster(drawn.roster),
        root=root.public,
        coordinator=Member(name="coordinator", key=coordinator.public),
        members=tuple(Member(name=name, key=identity.public) for name, identity in hospitals.items()),
    )
    signature = sign_plan(plan, coordinator, roster)
    return Identities(hospitals=hospitals, roster=sign_roster(roster, root), plan_signature=signature)


def code(reply: Message) -> str:
    """The name of a reply's error, "" for a good one."""
    return error_name(reply) if reply.has_error() else ""


def _site(name: str, plan: Plan, seed: int | None) -> Site:
    return Site(
        hospital=name,
        sources=(RecordSource(kind="embedded"),),
        unit=plan.privacy.unit,
        declared_population=plan.hospital(name).declared_population,
        budget_epsilon="unlimited",
        allow_privacy_none=True,
        simulation_seed=seed,
    )


def _write(site: Site, path: Path) -> None:
    values = dataclasses.asdict(site)
    path.write_text(yaml.safe_dump({**values, "sources": [dict(source) for source in values["sources"]]}))
