"""A hospital that lies spoils at most its own part: it is refused, or found out, and nothing it says changes the rest."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from fedslm.crypto.shamir import combine, split
from fedslm.errors import (
    AdvertError,
    BoundError,
    ConsistencyError,
    DecodeError,
    FedSLMError,
    ProtocolError,
    SessionError,
    ShareError,
    SignatureError,
    ThresholdError,
)
from fedslm.secagg import hospital
from fedslm.secagg.coordinator import Coordinator
from fedslm.secagg.encoding import Ring, pack_ring
from fedslm.secagg.messages import (
    NO_HEAD,
    Advert,
    ConfirmReply,
    MaskedReply,
    ShareList,
    SharesReply,
    UnmaskReply,
    confirm_body,
)
from fedslm.secagg.seeds import SEED_BYTES
from fedslm.secagg.wire import decode, encode
from tests.secagg.session import (
    SCOPE,
    Session,
    advert,
    identity,
    name_of,
    roster,
    sealing_key,
    terms_for,
    with_adverts,
)
from tests.secagg.test_hospital import cuts, flips


def refused(session: Session, error: type[FedSLMError], match: str, call: Callable[[], object]) -> None:
    """The message is refused, and the coordinator is as it was."""
    before = copy.deepcopy(vars(session.coordinator))
    with pytest.raises(error, match=match):
        call()
    after = vars(session.coordinator)
    assert np.array_equal(before.pop("_total"), after["_total"])
    assert before == {name: value for name, value in after.items() if name != "_total"}


def test_a_forged_advert_is_refused_before_a_session_begins() -> None:
    terms = terms_for(4)
    forged = dataclasses.replace(terms.adverts[1], serial=7)
    with pytest.raises(AdvertError, match="'hospital-002'"):
        Coordinator(with_adverts(terms, (terms.adverts[0], forged, *terms.adverts[2:])), keys=roster(4))


def test_a_session_is_known_by_its_context(session: Session) -> None:
    assert session.coordinator.context == session.terms.context


# --- step 1 --------------------------------------------------------------------------------------------------------------


def shares_reply(session: Session, point: int, **changes: Any) -> bytes:
    return encode(dataclasses.replace(decode(SharesReply, session.share(point)), **changes))


def test_shares_are_taken_and_the_next_advert_is_given_back(session: Session) -> None:
    assert session.coordinator.shares(2, session.share(2)) == advert(name_of(2), 2)
    assert session.coordinator.sharers == (2,)


def test_shares_for_another_session_are_refused(session: Session) -> None:
    bad = shares_reply(session, 2, context=bytes(32))
    refused(session, ConsistencyError, "answers for another session", lambda: session.coordinator.shares(2, bad))


def test_shares_in_the_name_of_another_are_refused(session: Session) -> None:
    reply = session.share(2)
    refused(session, ConsistencyError, "in the name of hospital 2", lambda: session.coordinator.shares(3, reply))


@pytest.mark.parametrize("point", [0, 6, 255, -1])
def test_shares_of_nobody_are_refused(session: Session, point: int) -> None:
    reply = session.share(2)
    refused(session, SessionError, "not in the session", lambda: session.coordinator.shares(point, reply))


def test_shares_twice_are_refused(session: Session) -> None:
    session.coordinator.shares(2, session.share(2))
    again = session.share(2)
    refused(session, SessionError, "answered step 1 before", lambda: session.coordinator.shares(2, again))


def test_a_list_that_is_not_signed_is_refused(session: Session) -> None:
    listed = decode(ShareList, decode(SharesReply, session.share(2)).shares)
    bad = shares_reply(session, 2, shares=encode(dataclasses.replace(listed, signature=bytes(3373))))
    refused(session, SignatureError, "'hospital-002'", lambda: session.coordinator.shares(2, bad))


def test_a_list_of_another_shape_is_refused(session: Session) -> None:
    listed = decode(ShareList, decode(SharesReply, session.share(2)).shares)
    bad = shares_reply(session, 2, shares=encode(dataclasses.replace(listed, commitments=listed.commitments[1:])))
    refused(session, DecodeError, "length for 5 hospitals", lambda: session.coordinator.shares(2, bad))


def test_ciphertexts_that_are_not_the_listed_ones_are_refused(session: Session) -> None:
    sealed = decode(SharesReply, session.share(2)).ciphertexts
    for other in ((*sealed[:3], b"x"), sealed[:3], (*sealed, b""), sealed[::-1], ()):
        bad = shares_reply(session, 2, ciphertexts=other)
        refused(session, ConsistencyError, "not those it listed", partial(session.coordinator.shares, 2, bad))


def test_the_next_advert_is_its_own_and_signed(session: Session) -> None:
    reply = decode(SharesReply, session.share(2))
    alien = encode(dataclasses.replace(reply, next_advert=encode(advert(name_of(3), 2))))
    refused(session, ConsistencyError, "in the name of another", lambda: session.coordinator.shares(2, alien))
    forged = encode(dataclasses.replace(advert(name_of(2), 2), serial=3))
    bad = encode(dataclasses.replace(reply, next_advert=forged))
    refused(session, AdvertError, "'hospital-002'", lambda: session.coordinator.shares(2, bad))
    session.coordinator.shares(2, encode(reply))


def with_key_of(session: Session, point: int, key: bytes) -> bytes:
    """A hospital's shares, its next advert with somebody's key, well signed."""
    name = name_of(point)
    stolen = Advert.sign(identity(name), member=name, serial=2, sealing_key=key, ledger_head=NO_HEAD, scope=SCOPE)
    return shares_reply(session, point, next_advert=encode(stolen))


def test_the_next_advert_has_a_key_of_its_own(session: Session) -> None:
    coordinator = session.coordinator
    for owner, serial in ((3, 1), (2, 1)):  # another's of this session, its own of this session
        bad = with_key_of(session, 2, sealing_key(name_of(owner), serial).public)
        refused(session, AdvertError, "next advert of hospital-002", partial(coordinator.shares, 2, bad))
    coordinator.shares(3, session.share(3))
    bad = with_key_of(session, 2, sealing_key(name_of(3), 2).public)
    refused(session, AdvertError, "next advert of hospital-002", lambda: coordinator.shares(2, bad))
    coordinator.shares(2, session.share(2))


@pytest.mark.parametrize("change", [1, -1, -32, 32, 10**6])
@pytest.mark.parametrize("place", range(3))
def test_ciphertexts_of_another_length_are_refused_even_where_their_sender_listed_them(place: int, change: int) -> None:
    session = Session(terms_for(4))
    reply = decode(SharesReply, session.share(2))
    listed, sealed = decode(ShareList, reply.shares), list(reply.ciphertexts)
    sealed[place] = bytes(len(sealed[place]) + change)
    again = ShareList.sign(
        identity(name_of(2)),
        signer=name_of(2),
        context=session.terms.context,
        sender=2,
        hashes=tuple(sha256(each).digest() for each in sealed),
        commitments=listed.commitments,
    )
    bad = encode(dataclasses.replace(reply, shares=encode(again), ciphertexts=tuple(sealed)))
    refused(session, DecodeError, "hospital-002 do not have the length", lambda: session.coordinator.shares(2, bad))


# --- step 2 --------------------------------------------------------------------------------------------------------------


def masked_reply(session: Session, point: int, **changes: Any) -> bytes:
    vector = bytes(pack_ring(session.levels[point], session.terms.fixed_point.ring_bits))
    reply = MaskedReply(context=session.terms.context, sender=point, vector=vector)
    return encode(dataclasses.replace(reply, **changes))


def test_a_vector_of_somebody_who_did_not_share_is_refused(session: Session) -> None:
    session.after_shares((1, 2, 3, 4))
    bad = masked_reply(session, 5)
    refused(session, BoundError, "without having shared", lambda: session.coordinator.masked(5, bad))


def test_a_vector_for_another_session_in_another_name_or_twice_is_refused(session: Session) -> None:
    session.after_shares()
    coordinator = session.coordinator
    other = masked_reply(session, 2, context=bytes(32))
    refused(session, ConsistencyError, "another session", lambda: coordinator.masked(2, other))
    mine = masked_reply(session, 2)
    refused(session, ConsistencyError, "in the name of hospital 2", lambda: coordinator.masked(3, mine))
    coordinator.masked(2, mine)
    refused(session, SessionError, "answered step 2 before", lambda: coordinator.masked(2, mine))


@pytest.mark.parametrize("length", [0, 19, 21, 24])
def test_a_vector_of_another_length_is_refused(session: Session, length: int) -> None:
    session.after_shares()
    bad = masked_reply(session, 2, vector=bytes(length))
    refused(session, DecodeError, f"has {length} bytes; 5 numbers", lambda: session.coordinator.masked(2, bad))


def test_bits_after_the_vector_are_refused() -> None:
    session = Session(terms_for(3, bits=19))
    session.after_shares()
    bad = masked_reply(session, 2, vector=bytes(11) + b"\x80")
    refused(session, DecodeError, "bits set after", lambda: session.coordinator.masked(2, bad))


# --- step 3 --------------------------------------------------------------------------------------------------------------


def test_a_confirmation_of_somebody_who_is_no_survivor_is_refused(session: Session) -> None:
    request = session.after_masks(session.after_shares(), (1, 2, 3, 4))
    body = confirm_body((1, 2, 3, 4, 5), (1, 2, 3, 4))
    signature = identity(name_of(5)).sign("confirm", body, signer=name_of(5), scope=session.terms.context)
    bad = encode(ConfirmReply(context=session.terms.context, sender=5, signature=signature))
    refused(session, BoundError, "not among the survivors", lambda: session.coordinator.confirmed(5, bad))
    session.coordinator.confirmed(1, session.confirm(1, request))


def test_a_confirmation_of_other_sets_or_by_another_is_refused(session: Session) -> None:
    session.after_masks(session.after_shares(), (1, 2, 3, 4))

    def reply(body: bytes, *, by: int = 1, sender: int = 1, context: bytes = session.terms.context) -> bytes:
        signature = identity(name_of(by)).sign("confirm", body, signer=name_of(by), scope=session.terms.context)
        return encode(ConfirmReply(context=context, sender=sender, signature=signature))

    right = confirm_body((1, 2, 3, 4, 5), (1, 2, 3, 4))
    for bad in (
        reply(confirm_body((1, 2, 3, 4, 5), (1, 2, 3, 4, 5))),
        reply(confirm_body((1, 2, 3, 4), (1, 2, 3, 4))),
        reply(right, by=2),
    ):
        refused(session, SignatureError, "'hospital-001'", partial(session.coordinator.confirmed, 1, bad))
    other = reply(right, context=bytes(32))
    refused(session, ConsistencyError, "another session", lambda: session.coordinator.confirmed(1, other))
    alien = reply(right, by=2, sender=2)
    refused(session, ConsistencyError, "in the name of hospital 2", lambda: session.coordinator.confirmed(1, alien))
    session.coordinator.confirmed(1, reply(right))
    refused(session, SessionError, "step 3 before", lambda: session.coordinator.confirmed(1, reply(right)))


# --- step 4 --------------------------------------------------------------------------------------------------------------

SURVIVORS = (1, 2, 3, 4)


@pytest.fixture
def last_step(session: Session) -> tuple[Session, dict[int, UnmaskReply]]:
    """Hospital 5 of five dropped out after sharing; the answers of all others, not yet handed in."""
    return answers_of(session, SURVIVORS)


def answers_of(session: Session, survivors: Iterable[int]) -> tuple[Session, dict[int, UnmaskReply]]:
    request = session.after_confirmations(session.after_masks(session.after_shares(), tuple(survivors)))
    confirmers = session.coordinator.confirmers
    return session, {point: decode(UnmaskReply, session.unmask(point, request)) for point in confirmers}


@pytest.mark.parametrize(
    "change",
    [
        {"self_shares": bytes(3 * SEED_BYTES)},
        {"self_shares": bytes(5 * SEED_BYTES)},
        {"self_shares": bytes(4 * SEED_BYTES - 1)},
        {"pair_shares": bytes(3 * SEED_BYTES)},
        {"pair_shares": bytes(5 * SEED_BYTES)},
        {"self_shares": bytes(5 * SEED_BYTES), "pair_shares": bytes(3 * SEED_BYTES)},
    ],
)
def test_another_number_of_shares_is_refused(
    last_step: tuple[Session, dict[int, UnmaskReply]], change: dict[str, Any]
) -> None:
    session, answers = last_step
    bad = encode(dataclasses.replace(answers[1], **change))
    refused(session, DecodeError, "another number of shares", lambda: session.coordinator.revealed(1, bad))


def test_shares_of_nobody_or_in_another_name_are_refused(last_step: tuple[Session, dict[int, UnmaskReply]]) -> None:
    session, answers = last_step
    coordinator = session.coordinator
    outsider = encode(dataclasses.replace(answers[1], sender=5))
    refused(session, BoundError, "not among the survivors", lambda: coordinator.revealed(5, outsider))
    alien = encode(answers[1])
    refused(session, ConsistencyError, "in the name of hospital 1", lambda: coordinator.revealed(2, alien))
    other = encode(dataclasses.replace(answers[1], context=bytes(32)))
    refused(session, ConsistencyError, "another session", lambda: coordinator.revealed(1, other))
    coordinator.revealed(1, alien)
    refused(session, SessionError, "step 4 before", lambda: coordinator.revealed(1, alien))


def test_nothing_is_released_below_the_threshold_and_a_late_answer_mends_it(
    last_step: tuple[Session, dict[int, UnmaskReply]],
) -> None:
    session, answers = last_step
    for point in (1, 2, 3):
        session.coordinator.revealed(point, encode(answers[point]))
        assert not session.coordinator.can_finish
        refused(session, ThresholdError, f"{point} of 5 hospitals revealed", session.coordinator.finish)
    session.coordinator.revealed(4, encode(answers[4]))
    assert session.coordinator.can_finish
    assert np.array_equal(session.coordinator.finish(), session.expected(SURVIVORS))


# --- false shares --------------------------------------------------------------------------------------------------------


def hand_in(session: Session, answers: dict[int, UnmaskReply]) -> None:
    for point, answer in answers.items():
        session.coordinator.revealed(point, encode(answer))


def falsified(answer: UnmaskReply, *places: int) -> UnmaskReply:
    """Every share false, or only those of the self seeds at some places."""
    if not places:
        return dataclasses.replace(
            answer, self_shares=os.urandom(len(answer.self_shares)), pair_shares=os.urandom(len(answer.pair_shares))
        )
    shares = bytearray(answer.self_shares)
    for place in places:
        shares[SEED_BYTES * place] ^= 1
    return dataclasses.replace(answer, self_shares=bytes(shares))


@pytest.mark.parametrize("liar", range(1, 9))
def test_one_false_answer_is_found_out_and_does_no_harm(liar: int) -> None:
    session, answers = answers_of(Session(terms_for(8, colluders=2)), range(1, 9))  # t = 6 of 8 answers
    hand_in(session, {**answers, liar: falsified(answers[liar])})
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 9)))
    # Whose shares were not needed at all was not looked at.
    assert session.coordinator.liars() == ((name_of(liar),) if liar <= 6 else ())


@pytest.mark.parametrize("liars", itertools.combinations(range(1, 8), 2))
def test_several_false_answers_are_found_out(liars: tuple[int, int]) -> None:
    session, answers = answers_of(Session(terms_for(7, colluders=1)), range(1, 8))  # t = 5 of 7 answers
    hand_in(session, {**answers, **{liar: falsified(answers[liar]) for liar in liars}})
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 8)))
    assert set(session.coordinator.liars()) == ({name_of(liar) for liar in liars} if liars != (6, 7) else set())


@pytest.mark.parametrize(
    ("colluders", "places", "is_named"),
    [(1, (4,), False), (1, (4, 6), True), (2, (4,), False), (2, (4, 6), False), (2, (4, 5, 6), True)],
)
def test_only_who_certainly_lied_is_named(colluders: int, places: tuple[int, ...], is_named: bool) -> None:
    session, answers = answers_of(Session(terms_for(8, colluders=colluders)), range(1, 9))
    hand_in(session, {**answers, 2: falsified(answers[2], *places)})
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 9)))
    assert session.coordinator.liars() == ((name_of(2),) if is_named else ())


def test_what_was_not_needed_is_compared_once_anything_is_wrong() -> None:
    session, answers = answers_of(Session(terms_for(8, colluders=2)), range(1, 9))
    hand_in(session, {**answers, 2: falsified(answers[2], 4), 8: falsified(answers[8])})
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 9)))
    assert session.coordinator.liars() == (name_of(8),)


def test_a_false_share_of_ones_own_seed_names_its_dealer() -> None:
    session, answers = answers_of(Session(terms_for(8, colluders=2)), range(1, 9))
    hand_in(session, {**answers, 2: falsified(answers[2], 1)})
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 9)))
    assert session.coordinator.liars() == (name_of(2),)


def test_too_many_false_answers_are_a_share_error_until_an_honest_one_comes(
    last_step: tuple[Session, dict[int, UnmaskReply]],
) -> None:
    session = Session(terms_for(5))  # t = 3
    _, answers = answers_of(session, range(1, 6))
    hand_in(session, {1: falsified(answers[1]), 2: answers[2], 4: answers[4]})
    for _ in range(2):
        with pytest.raises(ShareError, match=r"5 seeds dealt by hospital-001, hospital-002, .*No sum was read"):
            session.coordinator.finish()
    hand_in(session, {5: answers[5]})
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 6)))
    assert session.coordinator.liars() == (name_of(1),)


def deal(session: Session, dealer: int, seeds: bytes, shares: list[bytes]) -> bytes:
    """What a hostile dealer sends: it commits to `seeds`, but deals `shares`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hospital, "split", lambda *_, **__: shares)
        patch.setattr(session, "draw", lambda count: seeds[:count])
        return session.share(dealer)


def after_hostile_dealing(session: Session, dealer: int, shares: list[bytes], seeds: bytes) -> dict[int, UnmaskReply]:
    for point in session.points:
        reply = deal(session, dealer, seeds, shares) if point == dealer else session.share(point)
        session.coordinator.shares(point, reply)
    to_confirm = session.after_masks(dict(session.coordinator.mask_requests()))
    request = session.after_confirmations(to_confirm)
    return {point: decode(UnmaskReply, session.unmask(point, request)) for point in session.coordinator.confirmers}


def test_a_dealer_that_lied_is_named_and_nobody_else() -> None:
    session, seeds = Session(terms_for(5, colluders=1)), os.urandom(4 * SEED_BYTES)
    answers = after_hostile_dealing(session, 2, [os.urandom(4 * SEED_BYTES) for _ in range(5)], seeds)
    hand_in(session, answers)
    with pytest.raises(ShareError, match=r"shares of 1 seeds dealt by hospital-002 do not fit"):
        session.coordinator.finish()
    assert session.coordinator.liars() == ()


def test_a_dealer_cannot_make_an_honest_hospital_look_like_a_liar() -> None:
    session, seeds = Session(terms_for(5, colluders=1)), os.urandom(4 * SEED_BYTES)
    shares = split(seeds, threshold=4, shares=5)
    shares[0] = os.urandom(len(shares[0]))  # dealt to hospital 1, which hands it on in good faith
    hand_in(session, after_hostile_dealing(session, 2, shares, seeds))
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 6)))
    assert session.coordinator.liars() == ()


def test_liars_together_cannot_make_honest_hospitals_look_like_liars() -> None:
    # Two of them bend every polynomial through their own shares such that the seeds stay right, so that all others are off.
    session, answers = answers_of(Session(terms_for(8, colluders=2)), range(1, 9))  # t = 6
    seeds = combine({point: answers[point].self_shares for point in range(3, 9)})
    bent = {1: os.urandom(len(seeds))} | {point: answers[point].self_shares for point in range(3, 7)}
    forged = solve_for(2, bent, seeds)
    lies = {
        1: dataclasses.replace(answers[1], self_shares=bent[1]),
        2: dataclasses.replace(answers[2], self_shares=forged),
    }
    own = bytearray(lies[1].self_shares)
    own[0] ^= 1  # one seed does not come out, so that the answers are compared
    lies[1] = dataclasses.replace(lies[1], self_shares=bytes(own))
    hand_in(session, {**answers, **lies})
    assert np.array_equal(session.coordinator.finish(), session.expected(range(1, 9)))
    assert set(session.coordinator.liars()) <= {name_of(1), name_of(2)}


def solve_for(point: int, others: dict[int, bytes], secret: bytes) -> bytes:
    """The share at `point` with which the others give `secret`: byte by byte, by trying."""
    answers = [combine({**others, point: bytes([byte]) * len(secret)}) for byte in range(256)]
    return bytes(
        next(byte for byte in range(256) if answers[byte][place] == secret[place]) for place in range(len(secret))
    )


def test_shares_of_a_session_with_no_dropouts_are_tried_up_to_a_limit() -> None:
    session, answers = answers_of(Session(terms_for(12)), range(1, 13))  # t = 7: 792 choices
    hand_in(session, {point: falsified(answer) for point, answer in answers.items()})
    with pytest.raises(ShareError, match="12 seeds"):
        session.coordinator.finish()
    assert session.coordinator.liars() == ()


# --- order ---------------------------------------------------------------------------------------------------------------


def test_no_step_can_be_left_out_or_repeated(session: Session) -> None:
    coordinator = session.coordinator
    shares, empty = session.share(1), masked_reply(session, 1)
    confirmation = encode(ConfirmReply(context=session.terms.context, sender=1, signature=bytes(3373)))
    revealed = encode(UnmaskReply(context=session.terms.context, sender=1, self_shares=b"", pair_shares=b""))
    messages: list[tuple[int, Callable[[], object]]] = [
        (1, lambda: coordinator.shares(1, shares)),
        (1, coordinator.mask_requests),
        (2, lambda: coordinator.masked(1, empty)),
        (2, coordinator.confirm_request),
        (3, lambda: coordinator.confirmed(1, confirmation)),
        (3, coordinator.unmask_request),
        (4, lambda: coordinator.revealed(1, revealed)),
        (4, coordinator.finish),
    ]

    def nothing_else_is_taken(step: int) -> None:
        for wanted, call in messages:
            if wanted != step:
                refused(session, SessionError, f"step {step}", call)

    nothing_else_is_taken(1)
    requests = session.after_shares()
    nothing_else_is_taken(2)
    to_confirm = session.after_masks(requests)
    nothing_else_is_taken(3)
    to_unmask = session.after_confirmations(to_confirm)
    nothing_else_is_taken(4)
    session.total(to_unmask)
    nothing_else_is_taken(5)


def test_a_step_that_too_few_answered_can_still_be_answered(session: Session) -> None:
    replies = {point: session.share(point) for point in session.points}
    for point in (1, 2, 3):
        session.coordinator.shares(point, replies[point])
    with pytest.raises(ThresholdError, match="3 of 5 hospitals shared; this session needs 4"):
        session.coordinator.mask_requests()
    session.coordinator.shares(5, replies[5])
    assert [point for point, _ in session.coordinator.mask_requests()] == [1, 2, 3, 5]


# --- bytes altered on the way --------------------------------------------------------------------------------------------


def test_shares_altered_on_the_way_are_refused(session: Session) -> None:
    reply = session.share(2)
    for altered in (*flips(reply, 150), *cuts(reply, 20)):
        with pytest.raises(ProtocolError):
            session.coordinator.shares(2, altered)
    session.coordinator.shares(2, reply)


def test_a_vector_altered_on_the_way_is_refused_in_all_but_its_numbers(session: Session) -> None:
    # The numbers are under no signature: a hostile hospital could send any anyway. The link protects them.
    reply = session.mask(2, session.after_shares()[2])
    head = len(reply) - session.terms.fixed_point.packed_bytes
    for place, bit in itertools.product(range(head), range(8)):
        altered = reply[:place] + bytes([reply[place] ^ 1 << bit]) + reply[place + 1 :]
        with pytest.raises(ProtocolError):
            session.coordinator.masked(2, altered)
    for altered in cuts(reply, 20):
        with pytest.raises(ProtocolError):
            session.coordinator.masked(2, altered)
    session.coordinator.masked(2, reply)


def test_a_confirmation_altered_on_the_way_is_refused(session: Session) -> None:
    reply = session.confirm(2, session.after_masks(session.after_shares()))
    for altered in (*flips(reply, 100), *cuts(reply, 20)):
        with pytest.raises(ProtocolError):
            session.coordinator.confirmed(2, altered)
    session.coordinator.confirmed(2, reply)


def test_shares_revealed_and_altered_on_the_way_are_refused_or_found_out(
    last_step: tuple[Session, dict[int, UnmaskReply]],
) -> None:
    session, answers = last_step  # exactly t answers: there is no other choice of them
    hand_in(session, {point: answers[point] for point in (1, 2, 3)})
    reply = encode(answers[4])
    for altered in (*flips(reply, 60), *cuts(reply, 20)):
        with pytest.raises(ProtocolError):
            finished(copy.deepcopy(session.coordinator), altered)
    session.coordinator.revealed(4, reply)
    assert np.array_equal(session.coordinator.finish(), session.expected(SURVIVORS))


def finished(coordinator: Coordinator, last_answer: bytes) -> Ring:
    coordinator.revealed(4, last_answer)
    return coordinator.finish()


# --- memory --------------------------------------------------------------------------------------------------------------


def test_vectors_are_added_and_forgotten() -> None:
    session = Session(terms_for(4, d=1000))
    requests = session.after_shares()
    for point, request in requests.items():
        session.coordinator.masked(point, session.mask(point, request))
        arrays = [value for value in vars(session.coordinator).values() if isinstance(value, np.ndarray)]
        assert [array.nbytes for array in arrays] == [4000]


def test_ciphertexts_are_dropped_once_they_were_relayed(session: Session) -> None:
    requests = session.after_shares()
    assert len(session.coordinator._ciphertexts) == 5
    session.after_masks(requests)
    assert session.coordinator._ciphertexts == {}
