"""An advert is taken once, and no two hospitals have the same key."""

from __future__ import annotations

import pytest

from fedslm.errors import AdvertError
from fedslm.secagg.messages import Advert
from server.adverts import Adverts
from tests.builders import masked_plan
from tests.masked import charter_of, masked_hospitals

PLAN = masked_plan()
ONE, OTHER, THIRD = masked_hospitals(PLAN, lambda index, number, trained: trained).values()


@pytest.fixture
def adverts() -> Adverts:
    return Adverts(charter_of(PLAN))


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
