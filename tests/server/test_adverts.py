"""An advert is taken once, and no two hospitals have the same key."""

from __future__ import annotations

import dataclasses

import pytest
from flwr.app import Message, RecordDict

from fedslm.errors import AdvertError, LedgerError
from fedslm.flower.compat import become_task
from fedslm.flower.records import join_reply, secagg_reply
from fedslm.secagg.messages import NO_HEAD, Advert, JoinReply
from fedslm.secagg.wire import encode
from server.adverts import Adverts
from server.heads import Heads
from tests.builders import masked_plan
from tests.masked import ToyLedger, charter_of, masked_hospitals

PLAN = masked_plan()
ONE, OTHER, THIRD = masked_hospitals(PLAN, lambda index, number, trained: trained).values()


@pytest.fixture
def adverts() -> Adverts:
    return Adverts(charter_of(PLAN), Heads(charter_of(PLAN)))


def test_a_newer_advert_takes_the_place_of_the_last(adverts: Adverts) -> None:
    for _ in range(2):
        adverts.keep(ONE.new_advert())
        assert adverts[ONE.name] == ONE.advert
    assert ONE.name in adverts
    assert OTHER.name not in adverts


def test_an_advert_is_not_taken_again_nor_an_older_one(adverts: Adverts) -> None:
    first, second = ONE.new_advert(), ONE.new_advert()
    adverts.keep(second)
    adverts.drop([ONE.name])
    for replayed in (first, second):
        with pytest.raises(AdvertError, match=rf"{ONE.name} sent its advert {replayed.serial} after {second.serial}"):
            adverts.keep(replayed)
    assert ONE.name not in adverts
    adverts.keep(ONE.new_advert())


def test_serials_are_each_members_own(adverts: Adverts) -> None:
    for serial, hospital in ((9, ONE), (3, OTHER), (1, THIRD)):
        hospital.serial = serial - 1
        adverts.keep(hospital.new_advert())
    assert [adverts[each.name].serial for each in (ONE, OTHER, THIRD)] == [9, 3, 1]


def test_a_key_that_another_hospital_has_is_refused_and_nothing_kept_changes(adverts: Adverts) -> None:
    adverts.keep(ONE.new_advert())
    mine: Advert = OTHER.new_advert()
    adverts.keep(mine)
    with pytest.raises(AdvertError, match=f"{OTHER.name} sent an advert with the key of {ONE.name}"):
        adverts.keep(OTHER.new_advert(key=ONE.key))
    assert adverts[OTHER.name] == mine


def test_a_key_that_nobody_has_any_more_may_be_taken(adverts: Adverts) -> None:
    adverts.keep(ONE.new_advert())
    adverts.drop([ONE.name, "hospital-2"])
    adverts.keep(OTHER.new_advert(key=ONE.key))


def test_an_advert_without_the_head_of_a_ledger_is_refused(adverts: Adverts) -> None:
    with pytest.raises(LedgerError):
        adverts.keep(dataclasses.replace(ONE.new_advert(), ledger_head=NO_HEAD))
    assert ONE.name not in adverts


def test_those_are_doubted_whose_hospitals_signed_something_else(adverts: Adverts) -> None:
    for hospital in (ONE, OTHER, THIRD):
        adverts.keep(hospital.new_advert())
    assert adverts.doubted() == ()
    ledger = OTHER.ledger
    OTHER.ledger = ToyLedger("another")
    adverts.keep(OTHER.new_advert())
    OTHER.ledger = ledger
    assert adverts.doubted() == (OTHER.name,)
    adverts.drop([OTHER.name])
    assert adverts.doubted() == ()


def joined(data: bytes) -> Message:
    become_task()
    return join_reply(Message(RecordDict(), 1, "query.join"), hospital=ONE.name, plan=PLAN, advert=data)


def test_what_a_hospital_joins_with_is_taken_or_refused_with_a_code(adverts: Adverts) -> None:
    advert = ONE.new_advert()
    answer = encode(JoinReply(advert=encode(advert), proofs=(b"rubbish",)))
    assert adverts.check(1, ONE.name, joined(answer)) == ""
    assert adverts[ONE.name] == advert
    assert adverts.check(1, ONE.name, joined(answer)) == "ADVERT_REFUSED"
    assert adverts.check(1, OTHER.name, joined(encode(JoinReply(advert=encode(ONE.new_advert()))))) == "ADVERT_REFUSED"
    assert adverts.check(1, ONE.name, joined(encode(ONE.new_advert()))) == "MALFORMED"
    assert adverts.check(1, ONE.name, secagg_reply(joined(b""), b"")) == "MALFORMED"
    assert adverts[ONE.name] == advert


def test_a_hospital_that_joins_behind_the_head_it_was_shown_has_no_advert(
    adverts: Adverts, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: Heads = adverts._heads
    rows = list(ONE.ledger.rows)
    ONE.ledger.add("a session")
    heads.note(ONE.new_advert())
    monkeypatch.setattr(ONE, "ledger", ToyLedger(ONE.name, rows))
    heads.invitation(1, ONE.name)
    answer = encode(JoinReply(advert=encode(ONE.new_advert())))
    assert adverts.check(1, ONE.name, joined(answer)) == "LEDGER_REFUSED"
    assert ONE.name not in adverts
