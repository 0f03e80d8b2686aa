"""Privacy ledgers in a masked run: who was set back stays out, who booked leaves a receipt, and nobody else suffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message

from fedslm.errors import RunError
from fedslm.governance.receipt import Head, Receipt
from fedslm.secagg.messages import NO_HEAD, HeadProof, Invitation, JoinReply, SharesReply
from fedslm.secagg.wire import decode, encode
from server.heads import Heads
from tests.masked import MaskedHospital, ToyLedger, step_of
from tests.server.test_checkpoints import full_disk
from tests.server.test_secure_grid import Bench, names, plan_for, silent

REFUSED = "LEDGER_REFUSED"


def receipts(folder: Path) -> list[Receipt]:
    return [Receipt.from_bytes(line) for line in (folder / "receipts.jsonl").read_bytes().splitlines()]


def set_back(hospital: MaskedHospital, rows: int = 1) -> None:
    """An older copy of its ledger is restored."""
    hospital.ledger = ToyLedger(hospital.name, hospital.ledger.rows[:rows])


def lose(hospital: MaskedHospital) -> Head:
    """Its ledger is gone and it opens another; returns the head that is lost."""
    lost: Head = hospital.ledger.head
    hospital.ledger = ToyLedger(f"{hospital.name} again")
    return lost


def asked(hospital: MaskedHospital) -> list[bool]:
    """For each of its invitations whether it was shown a head of its own."""
    return [bool(invitation.own) for invitation in hospital.invited]


def told(bench: Bench) -> list[tuple[str, str]]:
    return bench.told("hospital_refused", "hospital", "code")


def after_rounds(count: int, folder: Path) -> Bench:
    """Four hospitals after some rounds."""
    bench = Bench(folder, plan_for(4)).joined()
    for number in range(1, count + 1):
        bench.round(number=number)
    return bench


def resumed(folder: Path, first: Bench) -> Bench:
    """The same hospitals and another process of the coordinator's, which knows nothing but the run folder."""
    return Bench(folder, first.plan, hospitals=first.hospitals, finished=first.counter.started).joined()


class TestReceipts:
    def test_every_session_of_every_hospital_leaves_one(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(3)).joined()
        for number in (1, 2):
            bench.round(number=number)
        found = receipts(tmp_path)
        assert sorted((receipt.session, receipt.hospital) for receipt in found) == [
            (session, name) for session in (1, 2) for name in bench.plan.names
        ]
        for receipt in found:
            hospital = bench.hospitals[receipt.hospital]
            receipt.verify(hospital.identity.public)
            assert receipt.run == bench.plan.sha256
            assert receipt.head.sha256 in hospital.ledger.rows

    def test_they_are_on_the_disk_before_shares_are_passed_on(self, tmp_path: Path) -> None:
        counts: list[int] = []

        def counting(node: int, message: Message) -> bool:
            if step_of(message) == "mask":
                counts.append(len(receipts(tmp_path)))
            return False

        Bench(tmp_path, plan_for(3), is_dropped=counting).joined().round()
        assert counts == [3, 3, 3]

    def test_whoever_booked_and_dropped_out_later_has_left_one_too(self, tmp_path: Path) -> None:
        lost = silent([("mask", 1), ("mask", 2)], sessions=1)
        bench = Bench(tmp_path, plan_for(4), is_dropped=lost).joined()
        bench.check(bench.round(), *bench.plan.names)
        assert sorted(receipt.session for receipt in receipts(tmp_path)) == [1] * 4 + [2] * 4

    def test_whose_shares_are_refused_has_booked_all_the_same(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        bench.hospitals["hospital-3"].tamper = spoiled(lambda reply: {"ciphertexts": reply.ciphertexts[::-1]})
        bench.check(bench.round(), *names(1, 2, 3))
        assert bench.told("hospital_dropped", "hospital", "code") == [("hospital-3", "INCONSISTENT")]
        assert {receipt.hospital for receipt in receipts(tmp_path)} == set(bench.plan.names)

    @pytest.mark.parametrize("receipt", [b"", b"{}"], ids=["absent", "rubbish"])
    def test_without_one_a_hospital_drops_out_and_the_others_go_on(self, receipt: bytes, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        bench.hospitals["hospital-3"].tamper = spoiled(lambda reply: {"receipt": receipt})
        bench.check(bench.round(), *names(1, 2, 3))
        assert bench.told("hospital_dropped", "hospital", "code", "step") == [("hospital-3", REFUSED, "train")]
        assert {receipt.hospital for receipt in receipts(tmp_path)} == {*names(1, 2, 3)}
        bench.hospitals["hospital-3"].tamper = lambda step, data: data
        bench.check(bench.round(number=2), *bench.plan.names, number=2)

    def test_one_of_another_session_run_or_hospital_is_none(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4, privacy={"max_sessions": 9}, training={"rounds": 6})).joined()
        liar, other = bench.hospitals["hospital-3"], bench.hospitals["hospital-0"]
        bench.round()
        run = bench.plan.sha256
        false_ones = (
            next(receipt for receipt in receipts(tmp_path) if receipt.hospital == liar.name),  # replayed
            liar.book(7),
            other.book(3),
            Receipt.sign(liar.identity, hospital=liar.name, head=liar.ledger.add("row"), run="f" * 64, session=4),
            Receipt.sign(other.identity, hospital=liar.name, head=liar.ledger.add("row"), run=run, session=5),
        )
        for number, false in enumerate(false_ones, start=2):
            liar.tamper = spoiled(lambda reply, false=false: {"receipt": false.to_bytes()})
            bench.check(bench.round(number=number), *names(1, 2, 3), number=number)
        assert set(bench.told("hospital_dropped", "hospital", "code", "step")) == {("hospital-3", REFUSED, "train")}
        assert [receipt.session for receipt in receipts(tmp_path) if receipt.hospital == liar.name] == [1]

    def test_a_full_disk_ends_the_round_before_anything_is_masked_for(self, tmp_path: Path) -> None:
        sent: list[str] = []

        def listening(node: int, message: Message) -> bool:
            sent.append(step_of(message))
            return False

        bench = Bench(tmp_path, plan_for(3), is_dropped=listening).joined()
        with (
            bench.network,
            full_disk(6000),
            pytest.raises(RunError, match=r"receipt of hospital-\d for session 1 cannot be written"),
        ):
            bench.round()
        assert set(sent) == {"join", "train"}
        assert receipts(tmp_path) == []
        assert bench.counter.started == 1  # what was booked was booked
        again = Bench(tmp_path, plan_for(3), hospitals=bench.hospitals).joined()
        again.check(again.round(), *again.plan.names)
        assert [receipt.session for receipt in receipts(tmp_path)] == [2, 2, 2]


def spoiled(change: Callable[[SharesReply], dict[str, object]]) -> Callable[[str, bytes], bytes]:
    def tamper(step: str, data: bytes) -> bytes:
        if step != "train":
            return data
        reply = decode(SharesReply, data)
        return encode(dataclasses.replace(reply, **change(reply)))  # type: ignore[arg-type]

    return tamper


class TestInvitations:
    def test_who_is_asked_again_is_shown_its_own_newest_head_and_told_the_others(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4), is_dropped=silent([("mask", 4)], sessions=1)).joined()
        bench.check(bench.round(), *names(1, 2, 3))
        bench.check(bench.round(number=2), *bench.plan.names, number=2)
        hospital = bench.hospitals["hospital-3"]
        assert asked(hospital) == [False, True]
        (_, again) = hospital.invited
        assert [name for name, _ in again.known] == list(names(1, 2, 3))
        rows = {name: Head.from_bytes(head).row for name, head in again.known}
        assert rows == dict.fromkeys(names(1, 2, 3), 2)

    def test_who_has_no_news_brings_no_proofs(self, tmp_path: Path) -> None:
        brought: list[int] = []

        def counting(step: str, data: bytes) -> bytes:
            if step == "join":
                brought.append(len(decode(JoinReply, data).proofs))
            return data

        bench = Bench(tmp_path, plan_for(4), is_dropped=silent([("mask", 4)], sessions=1))
        bench.hospitals["hospital-3"].tamper = counting
        bench.joined().round()
        bench.round(number=2)
        assert brought == [0, 0]

    def test_an_advert_without_a_head_puts_nobody_in(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4))
        bench.hospitals["hospital-1"].ledger = NoLedger()
        bench.joined()
        assert told(bench) == [("node 2", REFUSED)]
        bench.check(bench.round(), *names(1, 3, 4))

    def test_a_next_advert_without_a_head_is_asked_for_anew(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        hospital = bench.hospitals["hospital-1"]
        ledger, book = hospital.ledger, hospital.book

        def booked(session: int) -> Receipt:
            receipt = book(session)
            hospital.ledger = NoLedger()
            return receipt

        hospital.book = booked  # type: ignore[method-assign]
        bench.check(bench.round(), *bench.plan.names)
        hospital.ledger, hospital.book = ledger, book  # type: ignore[method-assign]
        bench.check(bench.round(number=2), *bench.plan.names, number=2)
        assert asked(hospital) == [False, True]


class NoLedger:
    class head:  # noqa: N801
        @staticmethod
        def to_bytes() -> bytes:
            return NO_HEAD


class TestSetBack:
    def test_a_hospital_that_is_shown_its_newer_head_stays_out_and_the_others_go_on(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4), is_dropped=silent([("mask", 4)], sessions=1)).joined()
        bench.check(bench.round(), *names(1, 2, 3))
        set_back(bench.hospitals["hospital-3"])
        bench.check(bench.round(number=2), *names(1, 2, 3), number=2)
        assert told(bench) == [("node 4", REFUSED)]
        assert bench.told("session_started", "hospitals")[-1] == names(1, 2, 3)
        assert bench.told("session_failed", "session") == []

    def test_a_hospital_that_does_not_look_is_refused(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4), is_dropped=silent([("mask", 4)], sessions=1)).joined()
        bench.round()
        hospital = bench.hospitals["hospital-3"]
        set_back(hospital)
        hospital.ledger.require = lambda head: None
        bench.check(bench.round(number=2), *names(1, 2, 3), number=2)
        assert told(bench) == [("node 4", REFUSED)]

    def test_a_ledger_set_back_before_the_next_advert_is_noticed_before_the_next_session(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4)).joined()
        bench.round()
        hospital = bench.hospitals["hospital-3"]
        book = hospital.book

        def booked(session: int) -> Receipt:
            receipt = book(session)
            set_back(hospital)
            return receipt

        hospital.book = booked  # type: ignore[method-assign]
        bench.check(bench.round(number=2), *bench.plan.names, number=2)  # the booking stands, the next advert is behind
        bench.check(bench.round(number=3), *names(1, 2, 3), number=3)
        assert asked(hospital) == [False, True]
        assert told(bench) == [("node 4", REFUSED)]

    def test_a_coordinator_that_knows_nothing_learns_it_from_the_others(self, tmp_path: Path) -> None:
        first = after_rounds(2, tmp_path)
        set_back(first.hospitals["hospital-2"])
        second = resumed(tmp_path, first)
        assert told(second) == []  # nobody knew, when it was asked who it is
        second.check(second.round(number=3), *names(1, 2, 4), number=3)
        assert told(second) == [("node 3", REFUSED)]
        assert asked(first.hospitals["hospital-2"])[1:] == [False, True]
        others = [asked(first.hospitals[name])[1:] for name in names(1, 2, 4)]
        assert others == [[False]] * 3  # nobody else is asked a second time

    def test_in_another_run_too(self, tmp_path: Path) -> None:
        first = after_rounds(2, tmp_path)
        plan = plan_for(4, nonce="1" * 32)
        (tmp_path / "second").mkdir()
        second = Bench(tmp_path / "second", plan)
        for name, hospital in second.hospitals.items():
            hospital.ledger, hospital.others = first.hospitals[name].ledger, first.hospitals[name].others
        set_back(second.hospitals["hospital-0"])
        second.joined()
        second.check(second.round(), *names(2, 3, 4))
        assert told(second) == [("node 1", REFUSED)]

    def test_what_a_coordinator_withholds_stands_in_the_receipts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(tmp_path, plan_for(4), is_dropped=silent([("unmask", 4)], sessions=1)).joined()
        bench.round()
        monkeypatch.setattr(Heads, "invitation", lambda *_: Invitation(known=(), own=b""))
        monkeypatch.setattr(Heads, "is_doubted", lambda *_: False)
        monkeypatch.setattr(Heads, "answered", lambda *_: None)
        hospital = bench.hospitals["hospital-3"]
        set_back(hospital)
        bench.check(bench.round(number=2), *bench.plan.names, number=2)
        mine = [receipt for receipt in receipts(tmp_path) if receipt.hospital == hospital.name]
        rows = [(receipt.head.ledger, receipt.head.row) for receipt in mine]
        assert rows[0] == rows[1]
        assert mine[0].head.sha256 != mine[1].head.sha256  # two bookings in one row: nobody can have both in a ledger


class TestLost:
    def test_a_new_ledger_in_its_place_is_asked_about_the_old_one(self, tmp_path: Path) -> None:
        first = after_rounds(1, tmp_path)
        lose(first.hospitals["hospital-1"])
        second = resumed(tmp_path, first)
        second.check(second.round(number=2), *names(1, 3, 4), number=2)
        assert told(second) == [("node 2", REFUSED)]

    def test_once_it_has_accounted_for_that_it_is_in_and_is_asked_no_more(self, tmp_path: Path) -> None:
        first = after_rounds(1, tmp_path)
        hospital = first.hospitals["hospital-1"]
        lost = lose(hospital)
        hospital.ledger.settled[lost.ledger] = lost.row
        second = resumed(tmp_path, first)
        for number in (2, 3):
            second.check(second.round(number=number), *second.plan.names, number=number)
        assert asked(hospital)[1:] == [False, True]
        assert told(second) == []

    def test_a_proof_that_is_forged_or_of_another_roster_disturbs_nobody(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, plan_for(4))
        victim, liar = bench.hospitals["hospital-0"], bench.hospitals["hospital-3"]
        later = ToyLedger("elsewhere")
        later.add("a row")
        advert, scope = victim.new_advert(), bench.grid._charter.advert_scope
        forged = dataclasses.replace(advert, ledger_head=later.head.to_bytes())
        proofs = [HeadProof(scope=scope, advert=encode(forged)), HeadProof(scope=bytes(64), advert=encode(advert))]

        def lying(step: str, data: bytes) -> bytes:
            if step != "join":
                return data
            reply = decode(JoinReply, data)
            return encode(dataclasses.replace(reply, proofs=(*map(encode, proofs), b"rubbish")))

        liar.tamper = lying
        bench.joined()
        bench.check(bench.round(), *bench.plan.names)
        assert asked(victim) == [False]
        assert told(bench) == []

    def test_whoever_keeps_bringing_up_other_ledgers_is_asked_so_often_and_then_left_out(self, tmp_path: Path) -> None:
        """A hospital that brings up another ledger of its own with every answer does not hold the round up."""
        bench = Bench(tmp_path, plan_for(4))
        strange = bench.hospitals["hospital-0"]
        strange.ledger.require = lambda head: None

        def bringing(step: str, data: bytes) -> bytes:
            if step != "join":
                return data
            kept, strange.ledger = strange.ledger, ToyLedger(f"ledger {len(strange.invited)}")
            advert = encode(strange.new_advert())
            strange.ledger = kept
            proof = encode(HeadProof(scope=strange.charter.advert_scope, advert=advert))
            return encode(dataclasses.replace(decode(JoinReply, data), proofs=(proof,)))

        strange.tamper = bringing
        bench.joined()
        bench.check(bench.round(), *names(2, 3, 4))
        assert len(strange.invited) == 3
        assert told(bench) == [("hospital-0", REFUSED)]
