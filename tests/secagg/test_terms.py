"""The promise and the context: what is refused before a session begins, and that every difference makes another session."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedslm.errors import AdvertError, BoundError, DecodeError, RosterError
from fedslm.secagg.encoding import Block, FixedPoint
from fedslm.secagg.messages import NO_HEAD, Advert, HeadProof
from fedslm.secagg.terms import (
    Bounds,
    Terms,
    advert_scope,
    default_colluders,
    key_of,
    threshold_of,
    verify_advert,
    verify_proof,
)
from fedslm.secagg.wire import encode
from tests.secagg.session import (
    PLAN,
    ROSTER,
    SCOPE,
    advert,
    identity,
    ledger_head,
    name_of,
    public,
    roster,
    sealing_key,
    terms_for,
    with_adverts,
)


def test_the_threshold_is_the_least_that_keeps_the_promise() -> None:
    for n in range(3, 256):
        for colluders in range(n - 1):
            t = threshold_of(n, colluders)
            assert colluders < 2 * t - n
            assert not colluders < 2 * (t - 1) - n


def test_a_quorum_gives_the_seeds_back_and_holds_enough_honest_hospitals() -> None:
    for n in range(3, 256):
        for colluders in (0, 1, default_colluders(n), n - 2):
            bounds = Bounds(n=n, colluders=colluders, honest=2)
            assert bounds.threshold <= bounds.quorum <= n
            assert bounds.quorum - colluders >= 2
            assert bounds.dropouts == n - bounds.quorum


def test_by_default_fewer_than_a_third_may_collude() -> None:
    assert [default_colluders(n) for n in (3, 4, 6, 7, 10, 255)] == [0, 1, 1, 2, 3, 84]


@pytest.mark.parametrize("n", [0, 1, 2, 256, 300])
def test_fewer_than_3_or_more_than_255_hospitals_are_refused(n: int) -> None:
    with pytest.raises(BoundError, match="3 to 255"):
        Bounds(n=n, colluders=0, honest=2)


@pytest.mark.parametrize(("colluders", "honest"), [(-1, 2), (0, 1), (0, 0)])
def test_a_promise_that_hides_nobody_is_refused(colluders: int, honest: int) -> None:
    with pytest.raises(BoundError, match="a sum hides one among two"):
        Bounds(n=5, colluders=colluders, honest=honest)


@pytest.mark.parametrize(("n", "colluders", "honest"), [(3, 2, 2), (5, 4, 2), (5, 3, 3), (10, 9, 2)])
def test_a_promise_that_no_set_of_survivors_can_keep_is_refused(n: int, colluders: int, honest: int) -> None:
    with pytest.raises(BoundError, match="lower colluders or have more hospitals join"):
        Bounds(n=n, colluders=colluders, honest=honest)


def test_a_promise_reads_as_a_sentence() -> None:
    assert str(Bounds(n=10, colluders=3, honest=2)) == (
        "3 of 10 may collude with the coordinator; 3 may drop out of a session"
    )


def test_fewer_hospitals_than_the_plan_asks_for_are_refused() -> None:
    assert dataclasses.replace(terms_for(4), min_cohort=4).min_cohort == 4
    with pytest.raises(BoundError, match="min_cohort is 5"):
        dataclasses.replace(terms_for(4), min_cohort=5)


def test_a_fixed_point_in_which_the_sum_could_wrap_is_refused() -> None:
    narrow = FixedPoint(ring_bits=16, parties=3, blocks=(Block(name="update", length=5, value_range=1.0),))
    with pytest.raises(BoundError, match="could wrap"):
        dataclasses.replace(terms_for(4), fixed_point=narrow)


def test_bounds_for_another_number_of_hospitals_are_refused() -> None:
    with pytest.raises(BoundError, match="has 4 hospitals"):
        dataclasses.replace(terms_for(4), bounds=Bounds(n=5, colluders=0, honest=2))


@pytest.mark.parametrize("order", [(0, 1, 1, 2), (1, 0, 2, 3), (0, 1, 3, 2), (0, 0, 1, 2)])
def test_a_member_twice_or_out_of_order_is_refused(order: tuple[int, ...]) -> None:
    adverts = terms_for(4).adverts
    with pytest.raises(AdvertError, match="twice or are not in ascending order"):
        with_adverts(terms_for(4), (adverts[index] for index in order))


def other_terms() -> list[Terms]:
    """Terms that differ from `terms_for(5, colluders=1)` in one thing each, and still are terms."""
    base = terms_for(5, colluders=1)
    changes: list[dict[str, Any]] = [
        {"run_id": "ruN"},
        {"session": 2},
        {"round": 2},
        {"plan_sha256": ROSTER},
        {"roster_sha256": PLAN},
        {"bounds": Bounds(n=5, colluders=0, honest=2)},
        {"bounds": Bounds(n=5, colluders=2, honest=2)},
        {"bounds": Bounds(n=5, colluders=1, honest=3)},
        {"min_cohort": 4},
        {"adapter_sha256": base.config_sha256},
        {"config_sha256": base.adapter_sha256},
        {"adapter_sha256": base.config_sha256, "config_sha256": base.adapter_sha256},
        {"fixed_point": dataclasses.replace(base.fixed_point, ring_bits=31)},
        {"fixed_point": dataclasses.replace(base.fixed_point, parties=6)},
        {"adverts": (*base.adverts[:4], advert(name_of(6)))},
        {"adverts": (*base.adverts[:4], advert(name_of(5), 2))},
        {"adverts": (*base.adverts[:4], dataclasses.replace(base.adverts[4], signature=base.adverts[3].signature))},
        {"adverts": (*base.adverts[:4], dataclasses.replace(base.adverts[4], ledger_head=b"1" * 72))},
    ]
    block = base.fixed_point.blocks[0]
    blocks = [
        (dataclasses.replace(block, name="updatf"),),
        (dataclasses.replace(block, length=6),),
        (dataclasses.replace(block, value_range=4.000001),),
        (dataclasses.replace(block, length=4), dataclasses.replace(block, length=1)),
    ]
    changes += [{"fixed_point": dataclasses.replace(base.fixed_point, blocks=chosen)} for chosen in blocks]
    found = [dataclasses.replace(base, **change) for change in changes]
    return [*found, terms_for(4, colluders=1), terms_for(6, colluders=1)]


def test_whatever_differs_makes_another_context() -> None:
    contexts = [terms.context for terms in (terms_for(5, colluders=1), *other_terms())]
    assert len(set(contexts)) == len(contexts)
    assert {len(context) for context in contexts} == {32}


def test_equal_terms_make_equal_contexts() -> None:
    assert terms_for(5).context == terms_for(5).context


def forged(**changes: Any) -> Advert:
    """The advert of the second hospital, changed after it was signed."""
    return dataclasses.replace(advert(name_of(2)), **changes)


@pytest.mark.parametrize(
    "bad",
    [
        forged(serial=2),
        forged(sealing_key=sealing_key(name_of(9), 1).public),
        forged(ledger_head=b"1" * 72),
        forged(member=name_of(3)),
        forged(signature=advert(name_of(2), 2).signature),
        forged(signature=advert(name_of(1)).signature),
        forged(signature=bytes(len(advert(name_of(2)).signature))),
        advert(name_of(2), 1, advert_scope(ROSTER, ROSTER)),
        advert(name_of(2), 1, advert_scope(PLAN, PLAN)),
        advert(name_of(8)),
    ],
)
def test_a_forged_advert_or_one_for_something_else_is_refused(bad: Advert) -> None:
    with pytest.raises(AdvertError, match="not signed by a member of the roster for this plan"):
        verify_advert(bad, roster(5), plan_sha256=PLAN, roster_sha256=ROSTER)


def test_a_signature_for_another_purpose_is_no_advert() -> None:
    honest = advert(name_of(2))
    signature = identity(name_of(2)).sign("shares", honest.body, signer=name_of(2), scope=SCOPE)
    with pytest.raises(AdvertError):
        verify_advert(forged(signature=signature), roster(5), plan_sha256=PLAN, roster_sha256=ROSTER)


@pytest.mark.parametrize("key", [bytes(1216), b"\xff" * 1216, sealing_key(name_of(2), 1).public[:1184] + bytes(32)])
def test_an_advert_to_which_nothing_can_be_sealed_is_refused_though_it_is_signed(key: bytes) -> None:
    # Otherwise one hostile hospital would end every session after the training, and the budget would be spent.
    bad = Advert.sign(
        identity(name_of(2)), member=name_of(2), serial=1, sealing_key=key, ledger_head=NO_HEAD, scope=SCOPE
    )
    with pytest.raises(AdvertError, match="nothing can be sealed to"):
        verify_advert(bad, roster(5), plan_sha256=PLAN, roster_sha256=ROSTER)


def proof(of: Advert, scope: bytes = SCOPE) -> HeadProof:
    return HeadProof(scope=scope, advert=encode(of))


def test_a_proof_holds_for_whatever_plan_and_roster_its_advert_was_signed() -> None:
    earlier = advert_scope(ROSTER, PLAN)
    for scope in (SCOPE, earlier):
        found = verify_proof(proof(advert(name_of(2), 4, scope), scope), roster(5))
        assert (found.member, found.ledger_head) == (name_of(2), ledger_head(name_of(2), 4))


def test_a_proof_needs_no_key_that_could_still_be_sealed_to() -> None:
    bare = Advert.sign(
        identity(name_of(2)), member=name_of(2), serial=1, sealing_key=bytes(1216), ledger_head=NO_HEAD, scope=SCOPE
    )
    assert verify_proof(proof(bare), roster(5)) == bare


@pytest.mark.parametrize(
    "bad",
    [
        proof(forged(ledger_head=ledger_head(name_of(2), 99))),
        proof(forged(ledger_head=ledger_head(name_of(3), 1))),
        proof(forged(member=name_of(3))),
        proof(forged(serial=2)),
        proof(forged(signature=advert(name_of(1)).signature)),
        proof(advert(name_of(2)), advert_scope(PLAN, PLAN)),
        proof(advert(name_of(2)), advert_scope(ROSTER, ROSTER)),
        proof(advert(name_of(8))),
    ],
    ids=["a later row", "another ledger", "another hospital", "a serial", "signature", "roster", "plan", "stranger"],
)
def test_a_proof_that_its_hospital_did_not_sign_is_refused(bad: HeadProof) -> None:
    with pytest.raises(AdvertError):
        verify_proof(bad, roster(5))


def test_a_proof_of_another_hospital_than_those_wanted_is_refused() -> None:
    mine = {name_of(1): public(name_of(1))}
    with pytest.raises(AdvertError, match="'hospital-002'"):
        verify_proof(proof(advert(name_of(2))), mine)


@pytest.mark.parametrize("content", [b"", b"FSLM", encode(advert(name_of(2)))[:-1], encode(proof(advert(name_of(2))))])
def test_a_proof_without_an_advert_is_refused(content: bytes) -> None:
    with pytest.raises(DecodeError):
        verify_proof(HeadProof(scope=SCOPE, advert=content), roster(5))


def test_one_forged_advert_is_enough_to_refuse_all() -> None:
    terms = terms_for(5)
    terms.verify_adverts(roster(5))
    with pytest.raises(AdvertError):
        dataclasses.replace(terms, adverts=(terms.adverts[0], forged(serial=2), *terms.adverts[2:])).verify_adverts(
            roster(5)
        )


def test_two_adverts_with_one_key_are_refused() -> None:
    copied = Advert.sign(
        identity(name_of(3)),
        member=name_of(3),
        serial=1,
        sealing_key=sealing_key(name_of(1), 1).public,
        ledger_head=NO_HEAD,
        scope=SCOPE,
    )
    adverts = [copied if one.member == copied.member else one for one in terms_for(5).adverts]
    with pytest.raises(AdvertError, match="same key"):
        with_adverts(terms_for(5), adverts).verify_adverts(roster(5))


def test_a_member_whom_the_roster_does_not_name_has_no_key() -> None:
    with pytest.raises(RosterError, match="does not name 'stranger'"):
        key_of(roster(3), "stranger")
