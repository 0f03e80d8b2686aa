"""What a hospital signed about its ledger is remembered, shown to it when it comes back, and believed of nobody else."""

from __future__ import annotations

import dataclasses

import pytest

from fedslm.errors import LedgerError, RollbackError
from fedslm.governance.plan import Plan
from fedslm.governance.receipt import Head
from fedslm.secagg.messages import NO_HEAD, Advert, HeadProof, Invitation
from fedslm.secagg.terms import verify_proof
from fedslm.secagg.wire import decode, encode
from server.heads import MAX_LEDGERS, Heads
from tests.builders import masked_plan
from tests.masked import MaskedHospital, ToyLedger, charter_of, masked_hospitals

PLAN, OTHER_PLAN = masked_plan(), masked_plan(nonce="1" * 32)
NODE = 7


def hospitals(plan: Plan = PLAN) -> list[MaskedHospital]:
    return list(masked_hospitals(plan, lambda index, number, trained: trained).values())


@pytest.fixture
def one() -> MaskedHospital:
    return hospitals()[0]


@pytest.fixture
def heads() -> Heads:
    return Heads(charter_of(PLAN))


def proof(hospital: MaskedHospital) -> bytes:
    """That the hospital signed where its ledger ends now."""
    return encode(HeadProof(scope=hospital.charter.advert_scope, advert=encode(hospital.new_advert())))


def shown(heads: Heads, hospital: MaskedHospital, node: int = NODE) -> Head | None:
    """The head of its own that the hospital sees when it is invited."""
    own = heads.invitation(node, hospital.name).own
    if not own:
        return None
    advert = verify_proof(decode(HeadProof, own), {hospital.name: hospital.identity.public})
    return Head.from_bytes(advert.ledger_head)


def joins(heads: Heads, hospital: MaskedHospital, node: int = NODE) -> Advert:
    advert = hospital.new_advert()
    heads.note(advert)
    heads.answered(node, hospital.name)
    return advert


def test_whoever_is_new_is_told_nothing(heads: Heads, one: MaskedHospital) -> None:
    for name in ("", one.name, "stranger"):
        assert heads.invitation(NODE, name) == Invitation(known=(), own=b"")


def test_a_hospital_is_shown_its_own_newest_head_and_told_the_others(heads: Heads) -> None:
    first, second, third = hospitals()
    for hospital in (third, first, second):
        heads.note(hospital.new_advert())
        hospital.ledger.add("a session")
        heads.note(hospital.new_advert())
    ends = {hospital.name: hospital.ledger.head.to_bytes() for hospital in (first, second, third)}
    told = heads.invitation(NODE, second.name)
    assert told.known == ((first.name, ends[first.name]), (third.name, ends[third.name]))
    assert shown(heads, second) == second.ledger.head
    assert heads.invitation(NODE, "").known == tuple(sorted(ends.items()))


def test_an_advert_without_a_head_is_refused(heads: Heads, one: MaskedHospital) -> None:
    bare = dataclasses.replace(one.new_advert(), ledger_head=NO_HEAD)
    with pytest.raises(LedgerError, match="row 0"):
        heads.note(bare)
    assert heads.invitation(NODE, "").known == ()


def set_back(heads: Heads, hospital: MaskedHospital) -> Head:
    """The hospital signs its second row and loses it; returns that."""
    before = list(hospital.ledger.rows)
    lost = hospital.ledger.add("a session")
    heads.note(hospital.new_advert())
    hospital.ledger = ToyLedger(hospital.name, before)
    return lost


class TestALedgerThatWasSetBack:
    def test_a_hospital_that_goes_on_is_not_doubted(self, heads: Heads, one: MaskedHospital) -> None:
        for _ in range(3):
            assert not heads.is_doubted(joins(heads, one))
            one.ledger.add("a session")

    @pytest.mark.parametrize("branch", [(), ("other",)], ids=["behind", "beside"])
    def test_it_is_doubted_where_its_rows_end_before_or_beside_what_was_signed(
        self, branch: tuple[str, ...], heads: Heads, one: MaskedHospital
    ) -> None:
        lost = set_back(heads, one)
        for row in branch:
            one.ledger.add(row)
        advert = one.new_advert()
        heads.note(advert)
        assert heads.is_doubted(advert)
        assert shown(heads, one) == lost

    def test_a_longer_branch_cannot_be_told_here_but_the_hospital_is_shown_its_row(
        self, heads: Heads, one: MaskedHospital
    ) -> None:
        lost = set_back(heads, one)
        assert shown(heads, one) == lost
        one.ledger.add("other")
        one.ledger.add("rows")
        with pytest.raises(RollbackError):
            one.ledger.require(lost)
        assert not heads.is_doubted(joins(heads, one))

    def test_whoever_was_shown_a_row_and_joins_without_it_is_refused(self, heads: Heads, one: MaskedHospital) -> None:
        lost = set_back(heads, one)
        assert shown(heads, one) == lost
        with pytest.raises(LedgerError, match="was shown row 2 of its ledger and joined with an older copy"):
            joins(heads, one)
        assert shown(heads, one) == lost  # and again the next time

    def test_whoever_was_not_shown_it_is_not_refused_but_doubted(self, heads: Heads, one: MaskedHospital) -> None:
        lost = set_back(heads, one)
        assert shown(heads, one, node=8) == lost
        assert heads.is_doubted(joins(heads, one, node=9))  # the answer of another node than the one that was asked

    def test_rows_beside_cannot_be_forgotten_by_being_repeated(self, heads: Heads, one: MaskedHospital) -> None:
        """Two rows with one number: whichever of them is told first or again, the hospital has to settle it."""
        before = list(one.ledger.rows)
        one.ledger.add("a session")
        lost = proof(one)
        one.ledger = ToyLedger(one.name, before)
        one.ledger.add("another session")
        advert = joins(heads, one)
        for told in (lost, proof(one), lost, proof(one)):
            heads.learn([told])
            assert heads.is_doubted(advert)


class TestALedgerThatWasLost:
    def test_it_is_settled_when_its_hospital_was_shown_it_and_joins(self, heads: Heads, one: MaskedHospital) -> None:
        first = joins(heads, one)
        lost = one.ledger.head
        one.ledger = ToyLedger(f"{one.name} again")
        second = one.new_advert()
        heads.note(second)
        assert heads.is_doubted(second)
        assert shown(heads, one) == lost
        assert not heads.is_doubted(joins(heads, one))
        assert shown(heads, one) == one.ledger.head
        assert heads.is_doubted(first)  # going back to the lost one is another matter: it must answer for the new one

    def test_being_shown_the_ledger_that_it_has_settles_nothing(self, heads: Heads, one: MaskedHospital) -> None:
        joins(heads, one)
        for _ in range(2):
            assert shown(heads, one) == one.ledger.head
            joins(heads, one)
        one.ledger = ToyLedger(f"{one.name} again")
        assert heads.is_doubted(one.new_advert())

    def test_a_row_that_was_not_shown_is_not_settled(self, heads: Heads, one: MaskedHospital) -> None:
        joins(heads, one)
        rows = list(one.ledger.rows)
        later = MaskedHospital(charter=one.charter, name=one.name, update=one.update)
        later.ledger = ToyLedger(one.name, rows)
        later.ledger.add("a session that only others saw")
        one.ledger = ToyLedger(f"{one.name} again")
        heads.note(one.new_advert())
        assert shown(heads, one) == Head(ledger=rows[0], row=1, sha256=rows[0])
        heads.learn([proof(later)])
        assert heads.is_doubted(joins(heads, one))
        assert shown(heads, one) == later.ledger.head
        assert not heads.is_doubted(joins(heads, one))

    def test_what_was_settled_is_not_asked_again_whoever_brings_it_up(self, heads: Heads, one: MaskedHospital) -> None:
        lost = proof(one)
        heads.learn([lost])
        one.ledger = ToyLedger(f"{one.name} again")
        heads.note(one.new_advert())
        assert shown(heads, one) is not None
        advert = joins(heads, one)
        heads.learn([lost, lost])
        assert not heads.is_doubted(advert)

    def test_a_settled_ledger_that_comes_back_shorter_is_doubted(self, heads: Heads, one: MaskedHospital) -> None:
        rows = list(one.ledger.rows)
        one.ledger.add("a session")
        joins(heads, one)
        one.ledger = ToyLedger(f"{one.name} again")
        shown(heads, one)
        assert not heads.is_doubted(joins(heads, one))
        one.ledger = ToyLedger(one.name, rows)
        assert heads.is_doubted(one.new_advert())


class TestProofs:
    def test_a_head_that_others_saw_in_an_earlier_run_counts(self, heads: Heads, one: MaskedHospital) -> None:
        earlier = hospitals(OTHER_PLAN)[0]
        earlier.ledger.add("a session of the earlier run")
        heads.learn([proof(earlier)])
        advert = joins(heads, one)
        assert heads.is_doubted(advert)
        assert shown(heads, one) == earlier.ledger.head
        assert dict(heads.invitation(NODE, "").known)[one.name] == earlier.ledger.head.to_bytes()

    def test_an_older_head_changes_nothing(self, heads: Heads, one: MaskedHospital) -> None:
        older = proof(one)
        one.ledger.add("a session")
        advert = joins(heads, one)
        heads.learn([older])
        assert not heads.is_doubted(advert)
        assert shown(heads, one) == one.ledger.head

    def test_what_proves_nothing_is_passed_over_and_the_rest_is_taken(self, heads: Heads, one: MaskedHospital) -> None:
        _, other, third = hospitals()
        for hospital in (one, other, third):
            heads.note(hospital.new_advert())
            hospital.ledger.add("a session")
        good, advert = proof(third), decode(Advert, decode(HeadProof, proof(one)).advert)
        scope = one.charter.advert_scope
        stranger = MaskedHospital(charter=one.charter, name="stranger", update=one.update)

        def told(forged: Advert, scope: bytes = scope) -> bytes:
            return encode(HeadProof(scope=scope, advert=encode(forged)))

        later = ToyLedger(one.name, [*one.ledger.rows, "f" * 64]).head.to_bytes()
        heads.learn(
            [
                b"",
                b"FSLM",
                encode(HeadProof(scope=scope, advert=b"")),
                encode(advert),
                told(dataclasses.replace(advert, ledger_head=later)),
                told(dataclasses.replace(advert, member=other.name)),
                told(dataclasses.replace(advert, signature=other.new_advert().signature)),
                told(dataclasses.replace(advert, ledger_head=NO_HEAD)),
                told(advert, charter_of(OTHER_PLAN).advert_scope),
                told(advert, bytes(64)),
                proof(stranger),
                good,
            ]
        )
        for hospital in (one, other):
            assert shown(heads, hospital) == Head(ledger=hospital.ledger.rows[0], row=1, sha256=hospital.ledger.rows[0])
        assert shown(heads, third) == third.ledger.head

    def test_what_is_no_news_costs_no_check_of_a_signature(
        self, heads: Heads, one: MaskedHospital, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known, checked = proof(one), []
        heads.learn([known])
        monkeypatch.setattr("server.heads.verify_proof", lambda *_: checked.append(1))
        heads.learn([known] * 100)
        assert checked == []


def test_memory_does_not_grow_with_ledgers_or_with_nodes(heads: Heads, one: MaskedHospital) -> None:
    for number in range(3 * MAX_LEDGERS):
        one.ledger = ToyLedger(f"ledger {number}")
        one.ledger.add("a session")
        heads.note(one.new_advert())
        for node in range(10):
            heads.invitation(1000 * number + node, one.name)
    assert len(heads._claims[one.name]) == MAX_LEDGERS
    assert len(heads._shown) == len(heads._current) == 1
    assert one.ledger.rows[0] in heads._claims[one.name]  # the newest stay
