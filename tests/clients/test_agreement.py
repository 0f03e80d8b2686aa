"""A hospital works for the plan its coordinator signed, under the roster it pinned, as the member it is: or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedslm.crypto.identity import Identity
from fedslm.crypto.seal import SealingKey
from fedslm.flower.records import ABORT, CONFIG, JOIN, MASK
from fedslm.governance.keyfiles import write_identity
from fedslm.governance.roster import Member, Roster, sign_plan, sign_roster
from fedslm.secagg.messages import AbortRequest, Advert
from fedslm.secagg.wire import decode, encode
from tests.clients.table import ONE, THREE, TWO, Table, code, plan_for


def _found_again(
    table: Table, *, root: Identity, coordinator: Identity, serial: int = 1, revoked: tuple[str, ...] = ()
) -> None:
    """A new roster for everybody at a table, pinned in the site files; the plan is signed under it."""
    hospitals = table.identities.hospitals
    members = tuple(Member(name=name, key=identity.public) for name, identity in hospitals.items())
    roster = Roster(
        version=1,
        consortium="simulation",
        serial=serial,
        root=root.public,
        coordinator=Member(name="coordinator", key=coordinator.public),
        members=members,
        revoked=tuple(hospitals[name].public.fingerprint for name in revoked),
    )
    path = table.folder / f"roster-{roster.sha256[:8]}.json"
    path.write_bytes(sign_roster(roster, root))
    table.roster = roster
    table.identities = dataclasses.replace(table.identities, plan_signature=sign_plan(table.plan, coordinator, roster))
    for name in table.sites:
        table.change_site(name, roster=str(path), roster_sha256=roster.sha256)


def test_a_roster_is_never_rolled_back(table: Table) -> None:
    root, coordinator = Identity.generate(), Identity.generate()
    _found_again(table, root=root, coordinator=coordinator, serial=5)
    table.join()
    _found_again(table, root=root, coordinator=coordinator, serial=4)
    assert code(table.invite(ONE)) == "ROSTER_REFUSED"
    _found_again(table, root=root, coordinator=coordinator, serial=6)
    table.join()
    np.testing.assert_allclose(table.run(1), table.expected(), atol=1e-7)


def test_a_revoked_member_is_out_wherever_it_is_met(table: Table) -> None:
    old = dict(table.adverts)
    _found_again(table, root=Identity.generate(), coordinator=Identity.generate(), revoked=(TWO,))
    table.join(ONE, THREE)
    assert code(table.invite(TWO)) == "ROSTER_REFUSED"
    table.adverts[TWO] = old[TWO]
    assert code(table.send(ONE, table.train_message(table.opening(1)))) == "ADVERT_REFUSED"


def test_an_advert_made_under_another_roster_serves_none(table: Table) -> None:
    _found_again(table, root=Identity.generate(), coordinator=Identity.generate())
    assert code(table.send(ONE, table.train_message(table.opening(1)))) == "ADVERT_REFUSED"
    assert table.trained == []


def test_a_plan_signed_by_another_coordinator_is_refused(table: Table) -> None:
    other = Identity.generate()
    roster = dataclasses.replace(table.roster, coordinator=Member(name="coordinator", key=other.public))
    signature = sign_plan(table.plan, other, roster)
    table.identities = dataclasses.replace(table.identities, plan_signature=signature)
    for kind in (JOIN, MASK, ABORT):
        assert code(table.ask(ONE, kind, encode(AbortRequest(session=1)))) == "SIGNATURE_REFUSED"


def test_an_identity_that_the_roster_does_not_name_is_refused(table: Table) -> None:
    path = table.folder / "other.pem"
    write_identity(path, Identity.generate(), None)
    table.change_site(ONE, identity=str(path))
    assert code(table.invite(ONE)) == "ROSTER_REFUSED"


def test_an_identity_with_a_passphrase_is_opened(table: Table) -> None:
    path, passphrase = table.folder / "locked.pem", table.folder / "passphrase"
    write_identity(path, table.identities.hospitals[ONE], b"open sesame")
    passphrase.write_text("open sesame\n")
    passphrase.chmod(0o600)
    table.change_site(ONE, identity=str(path))
    assert code(table.invite(ONE)) == "PLAN_REFUSED"
    table.change_site(ONE, identity=str(path), passphrase_file=str(passphrase))
    assert code(table.invite(ONE)) == ""


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "ROSTER_REFUSED"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"simulation", b"simulatiom")), "ROSTER_REFUSED"),
        (lambda path: path.unlink(), "PLAN_REFUSED"),
    ],
    ids=["cut", "altered", "missing"],
)
def test_a_damaged_roster_is_refused(table: Table, change: Callable[[Path], None], refused: str) -> None:
    change(Path(str(table.sites[ONE].roster)))
    assert code(table.invite(ONE)) == refused


def test_a_roster_other_than_the_pinned_one_is_refused(table: Table) -> None:
    other = dataclasses.replace(table.roster, consortium="others")
    table.change_site(ONE, roster_sha256=other.sha256)
    assert code(table.invite(ONE)) == "ROSTER_REFUSED"
    pinned = table.message(JOIN)
    pinned.content.config_records[CONFIG]["roster-sha256"] = bytes.fromhex(other.sha256)
    assert code(table.send(ONE, pinned)) == "ROSTER_REFUSED"  # the file is another than pin and message say


def test_a_member_of_the_roster_that_the_plan_does_not_name_is_not_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Table(tmp_path, plan_for(5), monkeypatch)
    narrow = dataclasses.replace(wide.plan, hospitals=wide.plan.hospitals[:4])
    coordinator, root = Identity.generate(), Identity.generate()
    _found_again(wide, root=root, coordinator=coordinator)
    wide.plan = narrow
    wide.identities = dataclasses.replace(wide.identities, plan_signature=sign_plan(narrow, coordinator, wide.roster))
    wide.join(*narrow.names)
    stranger = wide.identities.hospitals["hospital-4"]
    scope = bytes.fromhex(narrow.sha256) + bytes.fromhex(wide.roster.sha256)
    old = decode(Advert, wide.adverts[ONE])
    wide.adverts["hospital-4"] = encode(
        Advert.sign(
            stranger,
            member="hospital-4",
            serial=1,
            sealing_key=SealingKey.generate().public,
            ledger_head=old.ledger_head,
            scope=scope,
        )
    )
    assert code(wide.send(ONE, wide.train_message(wide.opening(1)))) == "ADVERT_REFUSED"
    del wide.adverts["hospital-4"]
    assert code(wide.send(ONE, wide.train_message(wide.opening(1)))) == ""
