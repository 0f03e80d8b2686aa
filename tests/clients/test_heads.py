"""A ledger that was set back is found out by those who saw a later row of it, whatever was restored at its hospital."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.ledger import open_ledger
from fedslm.flower.records import SECAGG, put_secagg, secagg_bytes
from fedslm.governance.receipt import Head, Receipt
from fedslm.secagg.messages import Advert, HeadProof, JoinReply, SharesReply
from fedslm.secagg.terms import advert_scope, verify_proof
from fedslm.secagg.wire import decode, encode
from tests.clients.table import NAMES, ONE, THREE, TWO, Session, Table, code, drawn_again, plan_for


def scope(table: Table) -> bytes:
    return advert_scope(bytes.fromhex(table.plan.sha256), bytes.fromhex(table.roster.sha256))


def proof(table: Table, name: str) -> bytes:
    """What shows the newest head of a hospital, from its newest advert."""
    return encode(HeadProof(scope=scope(table), advert=table.adverts[name]))


def head(table: Table, name: str) -> Head:
    return Head.from_bytes(decode(Advert, table.adverts[name]).ledger_head)


def proofs_from(table: Table, name: str, **known: Any) -> list[Advert]:
    reply = decode(JoinReply, secagg_bytes(table.invite(name, **known)))
    return [verify_proof(decode(HeadProof, data), table.roster.keys) for data in reply.proofs]


def backup(table: Table, name: str) -> Path:
    folder = Path(str(table.sites[name].state_folder))
    return Path(shutil.copytree(folder, folder.with_name(folder.name + "-backup")))


def restore(table: Table, name: str, copy: Path) -> None:
    folder = Path(str(table.sites[name].state_folder))
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    table.forget(name)


def test_an_advert_shows_the_row_in_which_the_last_session_was_booked(table: Table) -> None:
    before = head(table, ONE)
    table.run(1)
    after = head(table, ONE)
    assert after.ledger == before.ledger
    assert after.row > before.row
    with open_ledger(table.sites[ONE]) as ledger:
        assert ledger.head() == after


def test_a_receipt_names_the_booking(table: Table) -> None:
    session = table.start(2)
    assert session.refused == {}
    replies = [decode(SharesReply, secagg_bytes(reply)) for _, kind, reply in table.replies if kind == "train"]
    for name, reply in zip(NAMES, replies, strict=True):
        receipt = Receipt.from_bytes(reply.receipt)
        receipt.verify(table.roster.keys[name])
        assert (receipt.hospital, receipt.run, receipt.session) == (name, table.plan.sha256, 2)
        with open_ledger(table.sites[name]) as ledger:
            assert ledger.read().knows(receipt.head)
            assert ledger.read().rows[receipt.head.row - 1].entry.session == 2  # type: ignore[union-attr]


def test_a_hospital_that_is_shown_a_later_row_of_its_own_refuses_until_it_is_settled(table: Table) -> None:
    copy = backup(table, ONE)
    table.run(1)
    shown = proof(table, ONE)
    restore(table, ONE, copy)
    assert code(table.invite(ONE)) == ""  # nobody told it
    assert code(table.invite(ONE, own=shown)) == "LEDGER_REFUSED"
    assert code(table.invite(ONE)) == "LEDGER_REFUSED"  # and it does not forget
    with open_ledger(table.sites[ONE]) as ledger:
        _, (lost,) = ledger.restore(None, forfeits=True)
    assert lost.row == head(table, ONE).row
    assert code(table.invite(ONE, own=shown)) == ""


def test_a_row_that_it_has_is_no_reason_to_refuse(table: Table) -> None:
    table.run(1)
    shown = proof(table, ONE)
    table.run(2)
    assert code(table.invite(ONE, own=shown)) == ""
    table.join()
    np.testing.assert_allclose(table.run(3), table.expected(), atol=1e-7)


@pytest.mark.parametrize("forged", ["another's", "unsigned", "another scope", "rubbish"])
def test_a_row_that_it_did_not_sign_is_no_reason_either(table: Table, forged: str) -> None:
    table.run(1)
    advert = decode(Advert, table.adverts[ONE])
    later = dataclasses.replace(head(table, ONE), row=999).to_bytes()
    shown = {
        "another's": proof(table, TWO),
        "unsigned": encode(
            HeadProof(scope=scope(table), advert=encode(dataclasses.replace(advert, ledger_head=later)))
        ),
        "another scope": encode(HeadProof(scope=bytes(64), advert=encode(advert))),
        "rubbish": b"rubbish",
    }[forged]
    assert code(table.invite(ONE, own=shown)) in ("ADVERT_REFUSED", "MALFORMED")
    assert code(table.invite(ONE)) == ""


def test_peers_refuse_a_session_with_a_hospital_that_was_set_back(table: Table) -> None:
    copy = backup(table, ONE)
    table.run(1)
    table.run(2)  # whose adverts show the booking of the first
    restore(table, ONE, copy)
    table.join()  # the coordinator shows it nothing
    started = table.start(3)
    assert {name: started.refused.get(name) for name in (TWO, THREE)} == dict.fromkeys((TWO, THREE), "ADVERT_REFUSED")
    assert table.trained == [*NAMES, *NAMES, ONE]


def test_two_runs_at_once_are_no_rollback(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run's adverts are a session old, and the other run's bookings have come in between."""
    folder = tmp_path / "beside"
    folder.mkdir()
    plan = plan_for(nonce="e" * 32)
    beside = Table(folder, plan, monkeypatch, identities=drawn_again(table, plan))
    for name in NAMES:
        beside.change_site(name, state_folder=table.sites[name].state_folder)
    beside.join()
    for number in (1, 2, 3):
        assert table.start(number).refused == {}
        assert beside.start(number).refused == {}
    assert {advert.member for advert in proofs_from(table, ONE)} == {TWO, THREE}  # one each, of the newer run


def test_peers_tell_a_coordinator_who_has_forgotten(table: Table) -> None:
    table.run(1)
    seen = {advert.member: Head.from_bytes(advert.ledger_head) for advert in proofs_from(table, TWO)}
    assert set(seen) == {ONE, THREE}
    newest = {name: head(table, name) for name in NAMES}
    table.run(2)
    assert {advert.member for advert in proofs_from(table, TWO, known={ONE: newest[ONE]})} == {THREE}
    assert proofs_from(table, TWO, known={ONE: newest[ONE], THREE: newest[THREE]}) == []


def test_both_copies_restored_are_found_out_in_a_new_run_by_what_peers_remember(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ledger and anchor of one hospital are set back, and a coordinator without a memory starts another run."""
    table, anchor = Table(tmp_path, plan_for(), monkeypatch), tmp_path / "disk" / "anchor"
    table.change_site(ONE, anchor_file=str(anchor))
    table.join()
    copy, noted = backup(table, ONE), anchor.read_bytes()
    table.run(1)
    table.run(2)
    restore(table, ONE, copy)
    anchor.write_bytes(noted)
    folder = tmp_path / "next"
    folder.mkdir()
    plan = plan_for(nonce="e" * 32)
    after = Table(folder, plan, monkeypatch, identities=drawn_again(table, plan))
    for name in NAMES:
        after.change_site(name, state_folder=table.sites[name].state_folder, anchor_file=table.sites[name].anchor_file)
    assert code(after.invite(ONE)) == ""
    told = decode(JoinReply, secagg_bytes(after.invite(TWO))).proofs
    (shown,) = (data for data in told if decode(Advert, decode(HeadProof, data).advert).member == ONE)
    assert code(after.invite(ONE, own=shown)) == "LEDGER_REFUSED"


def test_an_advert_without_a_ledger_takes_part_in_nothing(table: Table) -> None:
    identity = table.identities.hospitals[TWO]
    advert = decode(Advert, table.adverts[TWO])
    bare = Advert.sign(
        identity,
        member=TWO,
        serial=advert.serial,
        sealing_key=advert.sealing_key,
        ledger_head=bytes(72),
        scope=scope(table),
    )
    table.adverts[TWO] = encode(bare)
    assert table.start(1).refused[ONE] == "ADVERT_REFUSED"


def test_two_histories_of_one_ledger_are_refused(table: Table) -> None:
    table.run(1)
    advert = decode(Advert, table.adverts[TWO])
    other = dataclasses.replace(head(table, TWO), sha256="f" * 64).to_bytes()
    forked = Advert.sign(
        table.identities.hospitals[TWO],
        member=TWO,
        serial=advert.serial,
        sealing_key=advert.sealing_key,
        ledger_head=other,
        scope=scope(table),
    )
    table.start(2)  # in which the others see the true one
    table.adverts[TWO] = encode(forked)
    table.join(ONE, THREE)
    started = Session(table, table.opening(3))
    assert code(table.send(ONE, started.message)) == "ADVERT_REFUSED"


def test_a_ledger_begun_anew_within_a_run_is_refused_by_the_others(table: Table) -> None:
    table.run(1)
    shutil.rmtree(Path(str(table.sites[ONE].state_folder)))  # and it has no anchor, as in a simulation
    table.forget(ONE)
    table.join(ONE)
    assert table.start(2).refused[TWO] == "ADVERT_REFUSED"


def test_an_invitation_that_is_none_is_refused(table: Table) -> None:
    message = table.message("query.join")
    assert code(table.send(ONE, message)) == "MALFORMED"
    message.content[SECAGG] = put_secagg(b"FSLM")
    assert code(table.send(ONE, message)) == "MALFORMED"
