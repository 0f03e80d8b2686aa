"""A coordinator that lies is refused by every hospital, one reason each; and what a hospital keeps does not show itself."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from fedslm.crypto.seal import seal
from fedslm.errors import (
    AdvertError,
    BoundError,
    ConsistencyError,
    DecodeError,
    ProtocolError,
    SealError,
    ShareError,
    SignatureError,
)
from fedslm.secagg import hospital
from fedslm.secagg.hospital import Confirmed, Masked, Seat, Shared
from fedslm.secagg.letters import Letter
from fedslm.secagg.messages import (
    NO_HEAD,
    Advert,
    ConfirmReply,
    ConfirmRequest,
    MaskRequest,
    ShareList,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
    confirm_body,
)
from fedslm.secagg.seeds import SEED_BYTES
from fedslm.secagg.terms import Terms
from fedslm.secagg.wire import decode, encode
from tests.secagg.session import (
    Session,
    advert,
    identity,
    name_of,
    roster,
    sealing_key,
    terms_for,
    with_adverts,
)
from tests.secagg.test_terms import other_terms

ME = 3
"""Whom the coordinator lies to in this module; there are points below it and above it."""

Deliveries = list[tuple[bytes, bytes]]


def admitted(terms: Terms, *, me: str = name_of(ME), own: Advert | None = None, known: int = 5) -> Seat:
    return hospital.admit(terms, me=me, own_advert=own or advert(me), keys=roster(known))


# --- step 1: the opening -------------------------------------------------------------------------------------------------


def test_a_seat_is_the_place_of_the_name_among_all() -> None:
    terms = terms_for(5, colluders=1)
    seat = admitted(terms)
    assert (seat.point, seat.names, seat.context) == (ME, terms.names, terms.context)
    assert seat.bounds == terms.bounds


def test_a_session_without_my_advert_is_refused() -> None:
    terms = terms_for(5)
    with pytest.raises(AdvertError, match="does not have the advert of hospital-003"):
        admitted(with_adverts(terms, (one for one in terms.adverts if one.member != name_of(ME))))


@pytest.mark.parametrize(
    "own", [advert(name_of(ME), 2), dataclasses.replace(advert(name_of(ME)), ledger_head=b"1" * 72)]
)
def test_my_advert_altered_or_an_older_one_of_mine_is_refused(own: Advert) -> None:
    with pytest.raises(AdvertError, match="not the one it made for this session"):
        admitted(terms_for(5), own=own)


@pytest.mark.parametrize("other", [1, 5])
def test_a_swapped_advert_of_another_is_refused(other: int) -> None:
    swapped = dataclasses.replace(advert(name_of(other)), sealing_key=sealing_key("coordinator", 1).public)
    adverts = [swapped if one.member == swapped.member else one for one in terms_for(5).adverts]
    with pytest.raises(AdvertError, match=f"'{name_of(other)}' is not signed"):
        admitted(with_adverts(terms_for(5), adverts))


def test_a_member_from_outside_the_roster_is_refused() -> None:
    with pytest.raises(AdvertError, match="'hospital-006' is not signed by a member of the roster"):
        admitted(terms_for(6), known=5)


def test_two_members_with_one_key_are_refused() -> None:
    copied = Advert.sign(
        identity(name_of(5)),
        member=name_of(5),
        serial=1,
        sealing_key=sealing_key(name_of(1), 1).public,
        ledger_head=NO_HEAD,
        scope=terms_for(5).plan_sha256 + terms_for(5).roster_sha256,
    )
    with pytest.raises(AdvertError, match="same key"):
        admitted(with_adverts(terms_for(5), (*terms_for(5).adverts[:4], copied)))


def test_hospitals_that_were_told_different_things_are_in_different_sessions() -> None:
    # An adapter without a gradient, settings without noise, another plan, another roster: nobody can be singled out.
    base = admitted(terms_for(5, colluders=1)).context
    for terms in other_terms():
        assert terms.context != base


# --- step 2: the shares of the others ------------------------------------------------------------------------------------


class Step2:
    """What the hospital ME would be delivered, to be tampered with."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.replies = {point: decode(SharesReply, session.share(point)) for point in session.points}

    def state(self) -> Shared:
        state = self.session.states[ME]
        assert isinstance(state, Shared)
        return state

    def delivery(self, sender: int, receiver: int = ME) -> tuple[bytes, bytes]:
        reply = self.replies[sender]
        return reply.shares, reply.ciphertexts[receiver - 1 - (receiver > sender)]

    def deliveries(self, senders: Iterable[int] = (1, 2, 4, 5)) -> Deliveries:
        return [self.delivery(sender) for sender in senders]

    def mask(self, deliveries: Deliveries, *, context: bytes | None = None) -> tuple[Masked, np.ndarray]:
        vector = self.session.levels[ME].copy()
        request = MaskRequest(context=context or self.session.terms.context, deliveries=tuple(deliveries))
        try:
            masked, _ = hospital.mask(self.state(), request, vector, keys=self.session.keys)
        except ProtocolError:
            assert np.array_equal(vector, self.session.levels[ME])  # a refusal leaves no half-masked vector
            raise
        return masked, vector

    def hostile(
        self,
        sender: int,
        *,
        ciphertext: bytes | None = None,
        signer: int | None = None,
        context: bytes | None = None,
        commitments: tuple[bytes, ...] | None = None,
    ) -> tuple[bytes, bytes]:
        """A delivery that the sender itself, in league with the coordinator, made up and signed."""
        honest = decode(ShareList, self.replies[sender].shares)
        sealed = self.delivery(sender)[1] if ciphertext is None else ciphertext
        hashes = list(honest.hashes)
        hashes[ME - 1 - (sender < ME)] = sha256(sealed).digest()
        listed = ShareList.sign(
            identity(name_of(signer or sender)),
            signer=name_of(signer or sender),
            context=context or self.session.terms.context,
            sender=sender,
            hashes=tuple(hashes),
            commitments=honest.commitments if commitments is None else commitments,
        )
        return encode(listed), sealed


@pytest.fixture
def step2(session: Session) -> Step2:
    return Step2(session)


def test_what_every_hospital_shared_is_accepted(step2: Step2) -> None:
    masked, vector = step2.mask(step2.deliveries())
    assert masked.sharers == (1, 2, 3, 4, 5)
    assert not np.array_equal(vector, step2.session.levels[ME])


def test_one_dropout_is_accepted_and_two_are_not(step2: Step2) -> None:
    assert step2.mask(step2.deliveries((1, 2, 4)))[0].sharers == (1, 2, 3, 4)
    for senders in itertools.chain(itertools.combinations((1, 2, 4, 5), 2), [(), (1,)]):
        with pytest.raises(BoundError, match="at least 4 with this one"):
            step2.mask(step2.deliveries(senders))


def test_another_context_is_refused(step2: Step2) -> None:
    with pytest.raises(ConsistencyError, match="another session"):
        step2.mask(step2.deliveries(), context=bytes(32))


def test_a_list_that_nobody_signed_is_refused(step2: Step2) -> None:
    listed = dataclasses.replace(decode(ShareList, step2.delivery(1)[0]), signature=bytes(3373))
    with pytest.raises(SignatureError, match="'hospital-001'"):
        step2.mask([(encode(listed), step2.delivery(1)[1]), *step2.deliveries((2, 4, 5))])


def test_a_list_in_the_name_of_another_is_refused(step2: Step2) -> None:
    with pytest.raises(SignatureError, match="'hospital-001'"):
        step2.mask([step2.hostile(1, signer=2), *step2.deliveries((2, 4, 5))])


def test_an_altered_commitment_is_refused(step2: Step2) -> None:
    honest = decode(ShareList, step2.delivery(1)[0])
    altered = dataclasses.replace(honest, commitments=(bytes(32), *honest.commitments[1:]))
    with pytest.raises(SignatureError, match="'hospital-001'"):
        step2.mask([(encode(altered), step2.delivery(1)[1]), *step2.deliveries((2, 4, 5))])


def test_a_list_from_another_session_is_refused(step2: Step2) -> None:
    replayed = Step2(Session(terms_for(5, colluders=1, session=2)))
    with pytest.raises(SignatureError, match="'hospital-001'"):
        step2.mask([replayed.delivery(1), *step2.deliveries((2, 4, 5))])


@pytest.mark.parametrize("what", ["adapter_sha256", "config_sha256", "plan_sha256", "roster_sha256"])
def test_what_a_hospital_with_another_adapter_or_settings_sealed_is_refused(step2: Step2, what: str) -> None:
    # The coordinator sends all but one hospital an adapter whose gradient is zero; the one would stand alone.
    change: dict[str, Any] = {what: sha256(b"other").digest()}
    shown = dataclasses.replace(step2.session.terms, **change)
    other = dataclasses.replace(admitted(step2.session.terms, me=name_of(1)), context=shown.context)
    key, mine = sealing_key(name_of(1), 1), identity(name_of(1))
    _, reply = hospital.share(
        other, step2.session.terms, sealing_key=key, identity=mine, next_advert=advert(name_of(1)), receipt=b""
    )
    with pytest.raises(SignatureError, match="'hospital-001'"):
        step2.mask([(reply.shares, reply.ciphertexts[1]), *step2.deliveries((2, 4, 5))])


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-1], lambda _: b""]
)
def test_a_forged_ciphertext_is_refused(step2: Step2, change: Callable[[bytes], bytes]) -> None:
    listed, ciphertext = step2.delivery(1)
    with pytest.raises(SealError, match="from hospital 1 is not the one it listed"):
        step2.mask([(listed, change(ciphertext)), *step2.deliveries((2, 4, 5))])


def test_a_rerouted_ciphertext_is_refused(step2: Step2) -> None:
    listed, _ = step2.delivery(1)
    for receiver in (2, 4, 5):
        with pytest.raises(SealError, match="from hospital 1 is not the one it listed"):
            step2.mask([(listed, step2.delivery(1, receiver)[1]), *step2.deliveries((2, 4, 5))])


def test_ciphertexts_in_another_order_are_refused(step2: Step2) -> None:
    (list_1, sealed_1), (list_2, sealed_2) = step2.deliveries((1, 2))
    with pytest.raises(SealError, match="from hospital 1 is not the one it listed"):
        step2.mask([(list_1, sealed_2), (list_2, sealed_1), *step2.deliveries((4, 5))])


@pytest.mark.parametrize("senders", [(1, 1, 2, 4), (2, 1, 4, 5), (1, 2, 5, 4), (1, 2, 4, 5, 5), (1, 2, 4, 1)])
def test_a_delivery_twice_or_out_of_order_is_refused(step2: Step2, senders: tuple[int, ...]) -> None:
    with pytest.raises(BoundError, match="twice, or out of order"):
        step2.mask(step2.deliveries(senders))


def test_my_own_shares_delivered_to_me_are_refused(step2: Step2) -> None:
    with pytest.raises(BoundError, match="in its own name"):
        step2.mask([*step2.deliveries((1, 2)), (step2.replies[ME].shares, b""), *step2.deliveries((4, 5))])


@pytest.mark.parametrize("point", [0, 6, 255])
def test_shares_of_a_hospital_that_is_not_in_the_session_are_refused(step2: Step2, point: int) -> None:
    stranger = dataclasses.replace(decode(ShareList, step2.delivery(5)[0]), sender=point)
    with pytest.raises(BoundError, match=f"no hospital {point} in a session of 5"):
        step2.mask([*step2.deliveries((1, 2, 4)), (encode(stranger), b"")])


def test_a_list_of_the_wrong_length_is_refused(step2: Step2) -> None:
    listed = decode(ShareList, step2.delivery(1)[0])
    with pytest.raises(DecodeError, match="length for 5 hospitals"):
        step2.mask([(encode(dataclasses.replace(listed, hashes=listed.hashes[:-1])), b"")])


def test_a_list_that_is_none_is_refused(step2: Step2) -> None:
    with pytest.raises(DecodeError):
        step2.mask([(encode(advert(name_of(1))), step2.delivery(1)[1])])


def letter(
    step2: Step2, u: int, *, head: bytes | None = None, body: bytes | None = None, info: bytes | None = None
) -> bytes:
    """What a hostile dealer u seals to ME."""
    context = step2.session.terms.context
    right = context + bytes([u, ME])
    size = SEED_BYTES * (1 + 5 - u) + (SEED_BYTES if u < ME else 0)
    plaintext = (right if head is None else head) + (bytes(size) if body is None else body)
    return seal(plaintext, to=sealing_key(name_of(ME), 1).public, info=right if info is None else info)


def test_a_letter_for_another_session_sender_or_receiver_is_refused(step2: Step2) -> None:
    context = step2.session.terms.context
    for head in (
        bytes(32) + bytes([1, ME]),
        context + bytes([2, ME]),
        context + bytes([1, 4]),
        context + bytes([ME, 1]),
    ):
        with pytest.raises(SealError, match="hospital 1 sealed to hospital 3 is not meant for it"):
            step2.mask([step2.hostile(1, ciphertext=letter(step2, 1, head=head)), *step2.deliveries((2, 4, 5))])
        with pytest.raises(SealError, match="hospital 1 sealed to hospital 3 does not open"):
            step2.mask([step2.hostile(1, ciphertext=letter(step2, 1, info=head)), *step2.deliveries((2, 4, 5))])


@pytest.mark.parametrize("change", [-192, -32, -1, 1, 32])
@pytest.mark.parametrize("sender", [1, 5])
def test_a_letter_of_the_wrong_length_is_refused(step2: Step2, sender: int, change: int) -> None:
    size = max(SEED_BYTES * (1 + 5 - sender) + (SEED_BYTES if sender < ME else 0) + change, 0)
    bad = step2.hostile(sender, ciphertext=letter(step2, sender, body=bytes(size)))
    others = [(bad if one == sender else step2.delivery(one)) for one in (1, 2, 4, 5)]
    with pytest.raises(SealError, match=f"hospital {sender} sealed to hospital 3 is not meant for it"):
        step2.mask(others)


def test_what_does_not_open_is_refused_with_the_name_of_its_sender_and_no_other_error(step2: Step2) -> None:
    honest, generator = step2.delivery(1)[1], random.Random(0)
    lengths = [0, 1, 31, 32, 1087, 1088, 1119, 1120, 1121, 1135, 1136, len(honest) - 1, len(honest) + 1]
    bad = [generator.randbytes(length) for length in lengths]
    bad += [
        bytes(len(honest)),
        b"\xff" * len(honest),
        honest[:1088] + bytes(32) + honest[1120:],
    ]  # a point of low order
    for ciphertext in bad:
        with pytest.raises(SealError, match="What hospital 1 sealed to hospital 3 does not open"):
            step2.mask([step2.hostile(1, ciphertext=ciphertext), *step2.deliveries((2, 4, 5))])


@pytest.mark.parametrize("sender", [1, 2])
def test_a_pair_seed_that_was_not_committed_to_is_refused(step2: Step2, sender: int) -> None:
    bad = step2.hostile(sender, ciphertext=letter(step2, sender))
    with pytest.raises(ShareError, match=f"Hospital {sender} sealed another pair seed than"):
        step2.mask([(bad if one == sender else step2.delivery(one)) for one in (1, 2, 4, 5)])


# --- step 3: the survivors -----------------------------------------------------------------------------------------------


class Step3:
    """The hospital ME after it masked for everybody but hospital 5."""

    def __init__(self, session: Session) -> None:
        self.session = session
        requests = session.after_shares((1, 2, 3, 4))
        for point, request in requests.items():
            session.mask(point, request)

    def confirm(
        self,
        sharers: tuple[int, ...],
        survivors: tuple[int, ...],
        *,
        me: int = ME,
        context: bytes | None = None,
    ) -> tuple[Confirmed, ConfirmReply]:
        state = self.session.states[me]
        assert isinstance(state, Masked)
        request = ConfirmRequest(context=context or self.session.terms.context, sharers=sharers, survivors=survivors)
        return hospital.confirm(state, request, identity=identity(name_of(me)))


@pytest.fixture
def step3(session: Session) -> Step3:
    return Step3(session)


def test_a_confirmation_is_a_signature_over_both_sets(step3: Step3) -> None:
    state, reply = step3.confirm((1, 2, 3, 4), (1, 2, 3, 4))
    assert state.survivors == (1, 2, 3, 4)
    body, scope = confirm_body((1, 2, 3, 4), (1, 2, 3, 4)), step3.session.terms.context
    step3.session.keys[name_of(ME)].verify("confirm", body, reply.signature, signer=name_of(ME), scope=scope)


def test_confirming_in_another_context_is_refused(step3: Step3) -> None:
    with pytest.raises(ConsistencyError, match="another session"):
        step3.confirm((1, 2, 3, 4), (1, 2, 3, 4), context=bytes(32))


@pytest.mark.parametrize("sharers", [(1, 2, 3, 4, 5), (1, 2, 3, 5), (1, 2, 3), ()])
def test_another_set_than_the_one_masked_for_is_refused(step3: Step3, sharers: tuple[int, ...]) -> None:
    with pytest.raises(ConsistencyError, match="another set of sharers"):
        step3.confirm(sharers, (1, 2, 3, 4))


@pytest.mark.parametrize("survivors", [(1, 2, 3, 4, 5), (1, 2, 3, 5), (1, 2, 3, 4, 255)])
def test_survivors_that_did_not_share_are_refused(step3: Step3, survivors: tuple[int, ...]) -> None:
    with pytest.raises(BoundError, match="not among those who shared"):
        step3.confirm((1, 2, 3, 4), survivors)


@pytest.mark.parametrize("survivors", [(1, 2, 3), (3,), ()])
def test_too_few_survivors_are_refused(step3: Step3, survivors: tuple[int, ...]) -> None:
    with pytest.raises(BoundError, match=f"The survivors are {len(survivors)} of 5 hospitals; at least 4"):
        step3.confirm((1, 2, 3, 4), survivors)


def test_survivors_without_me_are_refused(session: Session) -> None:
    for point, delivered in session.after_shares().items():
        session.mask(point, delivered)
    state = session.states[ME]
    assert isinstance(state, Masked)
    request = ConfirmRequest(context=session.terms.context, sharers=(1, 2, 3, 4, 5), survivors=(1, 2, 4, 5))
    with pytest.raises(BoundError, match="with this one among them"):
        hospital.confirm(state, request, identity=identity(name_of(ME)))


# --- step 4: the confirmations -------------------------------------------------------------------------------------------

EVERYBODY = (1, 2, 3, 4, 5)
SURVIVORS = (1, 2, 3, 4)


class Step4:
    """The hospital ME after it confirmed (1, 2, 3, 4) of 5, and everybody's signature over anything."""

    def __init__(self, session: Session) -> None:
        self.session = session
        for point, delivered in session.after_shares().items():
            session.mask(point, delivered)
        request = ConfirmRequest(context=session.terms.context, sharers=EVERYBODY, survivors=SURVIVORS)
        self.right = {
            point: decode(ConfirmReply, session.confirm(point, encode(request))).signature for point in SURVIVORS
        }

    def signed(
        self,
        point: int,
        sharers: tuple[int, ...] = EVERYBODY,
        survivors: tuple[int, ...] = SURVIVORS,
        *,
        purpose: str = "confirm",
        scope: bytes | None = None,
        by: int | None = None,
    ) -> bytes:
        return identity(name_of(by or point)).sign(
            purpose,
            confirm_body(sharers, survivors),
            signer=name_of(by or point),
            scope=scope or self.session.terms.context,
        )

    def unmask(self, confirmations: dict[int, bytes], *, context: bytes | None = None) -> UnmaskReply:
        state = self.session.states[ME]
        assert isinstance(state, Confirmed)
        request = UnmaskRequest(
            context=context or self.session.terms.context, confirmations=tuple(sorted(confirmations.items()))
        )
        return hospital.unmask(state, request, keys=self.session.keys)


@pytest.fixture
def step4(session: Session) -> Step4:
    return Step4(session)


def test_enough_confirmations_reveal_one_share_a_survivor_and_one_a_cut_pair(step4: Step4) -> None:
    reply = step4.unmask(step4.right)
    assert (len(reply.self_shares), len(reply.pair_shares)) == (4 * SEED_BYTES, 4 * SEED_BYTES)


def test_unmasking_in_another_context_is_refused(step4: Step4) -> None:
    with pytest.raises(ConsistencyError, match="another session"):
        step4.unmask(step4.right, context=bytes(32))


def test_one_confirmation_too_few_is_refused(step4: Step4) -> None:
    for missing in SURVIVORS:
        with pytest.raises(ConsistencyError, match="Only 3 of the 4 signatures"):
            step4.unmask({point: signature for point, signature in step4.right.items() if point != missing})
    with pytest.raises(ConsistencyError, match="Only 0 of the 4 signatures"):
        step4.unmask({})


@pytest.mark.parametrize("point", [0, 5, 6, 255])
def test_the_confirmation_of_somebody_who_is_no_survivor_does_not_count(step4: Step4, point: int) -> None:
    signature = step4.signed(point) if point else step4.right[4]
    three = {survivor: step4.right[survivor] for survivor in (1, 2, 3)}
    with pytest.raises(ConsistencyError, match="Only 3 of the 4"):
        step4.unmask({**three, point: signature})


@pytest.mark.parametrize(
    ("sharers", "survivors"),
    [
        (EVERYBODY, EVERYBODY),
        (EVERYBODY, (1, 3, 4, 5)),
        (EVERYBODY, (1, 2, 4)),
        (SURVIVORS, SURVIVORS),
        ((*EVERYBODY, 1, 2, 3, 4), ()),
    ],
)
def test_a_confirmation_of_other_sets_does_not_count(
    step4: Step4, sharers: tuple[int, ...], survivors: tuple[int, ...]
) -> None:
    with pytest.raises(ConsistencyError, match="Only 3 of the 4"):
        step4.unmask({**step4.right, 4: step4.signed(4, sharers, survivors)})


def test_a_confirmation_in_another_session_for_another_purpose_or_by_another_does_not_count(step4: Step4) -> None:
    wrong = [
        step4.signed(4, scope=terms_for(5, colluders=1, session=2).context),
        step4.signed(4, purpose="shares"),
        step4.signed(4, purpose="abort"),
        step4.signed(4, by=5),
        step4.right[1],
        bytes(3373),
        step4.right[4][:64] + step4.right[1][64:],  # one half is not enough
        step4.right[1][:64] + step4.right[4][64:],
    ]
    for signature in wrong:
        with pytest.raises(ConsistencyError, match="Only 3 of the 4"):
            step4.unmask({**step4.right, 4: signature})


def test_one_confirmation_does_not_count_twice(step4: Step4) -> None:
    three = [(point, step4.right[point]) for point in (1, 2, 3)]
    with pytest.raises(DecodeError, match="stands twice"):
        UnmaskRequest(context=step4.session.terms.context, confirmations=(*three, (3, step4.right[3])))


def test_rubbish_beside_enough_confirmations_changes_nothing(session: Session) -> None:
    honest = Session(terms_for(4))  # t = 3
    request = honest.after_masks(honest.after_shares())
    signatures = {point: decode(ConfirmReply, honest.confirm(point, request)).signature for point in honest.points}
    wanted = UnmaskRequest(context=honest.terms.context, confirmations=tuple(signatures.items()))
    with_rubbish = (
        (0, bytes(3373)),
        (1, bytes(3373)),
        *[(point, signatures[point]) for point in (2, 3, 4)],
        (9, bytes(3373)),
    )
    state = honest.states[2]
    assert isinstance(state, Confirmed)
    spoilt = UnmaskRequest(context=honest.terms.context, confirmations=with_rubbish)
    assert hospital.unmask(state, spoilt, keys=honest.keys) == hospital.unmask(state, wanted, keys=honest.keys)


# --- what is revealed ----------------------------------------------------------------------------------------------------


def labelled_state(seat: Seat, sharers: tuple[int, ...], survivors: tuple[int, ...]) -> Confirmed:
    """A hospital whose share of each seed says which seed it is of: dealer, then other end."""
    n = len(seat.names)
    shares = tuple((u, b"".join(bytes([u, v]).ljust(SEED_BYTES) for v in range(u, n + 1))) for u in sharers)
    return Confirmed(masked=encode(Masked(seat=encode(seat), shares=shares)), survivors=survivors)


def test_both_kinds_of_share_are_never_revealed_for_one_mask() -> None:
    # Every request a hospital could reach: all U2 and U3 that hold it, down to the bounds.
    terms = terms_for(5)
    seat, others = admitted(terms), (1, 2, 4, 5)
    quorum, reached = terms.bounds.quorum, 0
    for size in range(quorum - 1, 5):
        for sharers in (tuple(sorted((ME, *chosen))) for chosen in itertools.combinations(others, size)):
            for survivors in itertools.chain(
                *(itertools.combinations(sharers, m) for m in range(quorum, len(sharers) + 1))
            ):
                if ME in survivors:
                    reply = revealed(terms, seat, sharers, survivors)
                    assert labels(reply.self_shares) == [(v, v) for v in survivors]
                    cut = [(v, w) for v in sharers for w in sharers if v < w and len({v, w} & set(survivors)) == 1]
                    assert labels(reply.pair_shares) == cut
                    reached += 1
    assert reached == 11 + 4 * 4 + 6  # U3 within the one U2 of five, the four of four, the six of three


def revealed(terms: Terms, seat: Seat, sharers: tuple[int, ...], survivors: tuple[int, ...]) -> UnmaskReply:
    body = confirm_body(sharers, survivors)
    signatures = tuple(
        (point, identity(name_of(point)).sign("confirm", body, signer=name_of(point), scope=terms.context))
        for point in survivors
    )
    request = UnmaskRequest(context=terms.context, confirmations=signatures)
    return hospital.unmask(labelled_state(seat, sharers, survivors), request, keys=roster(5))


def labels(shares: bytes) -> list[tuple[int, int]]:
    chunks = [shares[start : start + SEED_BYTES] for start in range(0, len(shares), SEED_BYTES)]
    assert all(chunk[2:] == b" " * (SEED_BYTES - 2) for chunk in chunks)
    return [(chunk[0], chunk[1]) for chunk in chunks]


def test_what_the_coordinator_relays_holds_no_seed_and_no_share(session: Session) -> None:
    # A regression test: shares that the aggregator could read would let it rebuild every key.
    replies = {point: session.share(point) for point in session.points}
    seen = b"".join(replies.values())
    secrets = [state.seeds + state.own_share for state in session.states.values() if isinstance(state, Shared)]
    for point, reply in replies.items():
        session.coordinator.shares(point, reply)
    seen += b"".join(session.mask(point, request) for point, request in session.coordinator.mask_requests())
    for state in session.states.values():
        assert isinstance(state, Masked)
        secrets += [share for _, share in state.shares]
    pieces = {block[start : start + 8] for block in secrets for start in range(0, len(block), 8)}
    windows = {seen[start : start + 8] for start in range(len(seen))}
    assert len(pieces) == 15 * 4 * (1 + 5)  # the seeds and the five shares of each, in pieces of 8 bytes
    assert pieces.isdisjoint(windows)


# --- what is kept, shown and logged --------------------------------------------------------------------------------------


def test_seeds_are_the_bytes_that_were_drawn_all_of_them() -> None:
    drawn: list[bytes] = []

    def draw(count: int) -> bytes:
        drawn.append(random.Random(len(drawn)).randbytes(count))
        return drawn[-1]

    session = Session(terms_for(5, colluders=1), draw=draw)
    session.share(2)
    state = session.states[2]
    assert isinstance(state, Shared)
    assert state.seeds == drawn[0]
    assert [len(part) for part in drawn] == [4 * SEED_BYTES, 4 * SEED_BYTES * 3]  # t - 1 = 3 coefficients a byte


def test_a_receipt_goes_out_as_it_came_in() -> None:
    terms, key, mine = terms_for(5), sealing_key(name_of(1), 1), identity(name_of(1))
    seat = admitted(terms, me=name_of(1))
    more: dict[str, Any] = {"sealing_key": key, "identity": mine, "next_advert": advert(name_of(1), 2)}
    for receipt in (b"", b"any bytes at all"):
        _, reply = hospital.share(seat, terms, receipt=receipt, **more)
        assert decode(SharesReply, encode(reply)).receipt == receipt


def test_seeds_come_from_the_operating_system_and_differ_each_time(session: Session) -> None:
    seeds = set()
    for _ in range(3):
        session.share(1)
        state = session.states[1]
        assert isinstance(state, Shared)
        seeds |= {state.seeds[start : start + SEED_BYTES] for start in range(0, len(state.seeds), SEED_BYTES)}
    assert len(seeds) == 3 * 5


def test_after_masking_neither_seeds_nor_the_sealing_key_are_kept(step2: Step2) -> None:
    before = step2.state()
    after = encode(step2.mask(step2.deliveries())[0])
    for secret in (before.seeds[:SEED_BYTES], before.seeds[SEED_BYTES:], before.sealing_key):
        assert secret not in after


def test_nothing_secret_shows_in_a_repr_a_log_or_an_error(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    # A regression test: frameworks have logged vectors before they were masked.
    with caplog.at_level(logging.DEBUG):
        shown, step2 = [], Step2(session)
        shown += [repr(state) for state in session.states.values()]
        for bad in (
            step2.hostile(1, ciphertext=letter(step2, 1)),
            step2.hostile(1, ciphertext=b"x"),
            step2.delivery(1, 4),
        ):
            with pytest.raises(ProtocolError) as refusal:
                step2.mask([bad, *step2.deliveries((2, 4, 5))])
            shown.append(str(refusal.value))
    for point, reply in step2.replies.items():
        session.coordinator.shares(point, encode(reply))
    request = session.after_masks(dict(session.coordinator.mask_requests()))
    shown += [repr(state) for state in session.states.values()]
    session.after_confirmations(request)
    shown += [repr(state) for state in session.states.values()]
    assert caplog.records == []
    assert {text for text in shown if "hidden" in text} == {
        f"{kind}(secrets hidden)" for kind in ("Shared", "Masked", "Confirmed")
    }
    assert not any("\\x" in text or "array" in text for text in shown)


def test_an_opened_letter_does_not_show_itself() -> None:
    # In a traceback with local variables it would.
    assert "secret seed" not in repr(Letter(pair_seed=b"secret seed", share=b"secret seed"))


def test_the_clear_vector_is_gone_after_masking(session: Session) -> None:
    requests = session.after_shares()
    vector = session.levels[ME].copy()
    state = session.states[ME]
    assert isinstance(state, Shared)
    _, reply = hospital.mask(state, decode(MaskRequest, requests[ME]), vector, keys=session.keys)
    assert not np.any(vector == session.levels[ME])
    assert bytes(reply.vector) == vector.tobytes()


# --- bytes altered on the way --------------------------------------------------------------------------------------------


def flips(data: bytes, count: int, *, tag: int = 0) -> Iterable[bytes]:
    """The bytes with one bit turned: at the head wherever it is, then at `count` places."""
    generator = random.Random(tag)
    places = [*range(40), *(generator.randrange(len(data)) for _ in range(count))]
    for place in places:
        yield data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]


def cuts(data: bytes, count: int) -> Iterable[bytes]:
    generator = random.Random(1)
    yield from (data[:length] for length in [*range(12), *(generator.randrange(len(data)) for _ in range(count))])
    yield data + b"\0"


def test_a_mask_request_altered_on_the_way_is_refused(session: Session) -> None:
    request = session.after_shares()[ME]
    for altered in (*flips(request, 100), *cuts(request, 20)):
        before = session.states[ME]
        with pytest.raises(ProtocolError):
            session.mask(ME, altered)
        assert session.states[ME] is before
    session.mask(ME, request)


def test_a_confirm_request_altered_on_the_way_is_refused(session: Session) -> None:
    request = session.after_masks(session.after_shares())
    for altered in (*flips(request, 100), *cuts(request, 20)):
        with pytest.raises(ProtocolError):
            session.confirm(ME, altered)
    session.confirm(ME, request)


def test_an_unmask_request_altered_on_the_way_is_refused(step4: Step4) -> None:
    request = encode(UnmaskRequest(context=step4.session.terms.context, confirmations=tuple(step4.right.items())))
    for altered in (*flips(request, 60), *cuts(request, 20)):
        with pytest.raises(ProtocolError):
            step4.session.unmask(ME, altered)
    step4.session.unmask(ME, request)


# --- giving a session up -------------------------------------------------------------------------------------------------


def test_aborts_are_counted_once_a_member_if_they_are_theirs() -> None:
    terms = terms_for(5)

    def abort(point: int, *, by: int | None = None, context: bytes = terms.context) -> bytes:
        return hospital.sign_abort(identity(name_of(by or point)), member=name_of(by or point), context=context)

    def count(aborts: dict[str, bytes], names: tuple[str, ...] = terms.names) -> int:
        return hospital.count_aborts(terms.context, names, aborts, roster(5))

    good = {name_of(point): abort(point) for point in (1, 2, 3)}
    assert count(good) == 3
    assert count({}) == 0
    assert count(good, (*terms.names, name_of(1))) == 3
    assert count({**good, name_of(3): abort(3, by=2)}) == 2
    assert count({**good, name_of(3): abort(3, context=bytes(32))}) == 2
    assert count({**good, name_of(3): bytes(3373)}) == 2
    assert count({**good, name_of(9): abort(9)}) == 3
    assert count({**good, name_of(9): abort(9)}, (*terms.names, name_of(9))) == 3
    confirmation = identity(name_of(4)).sign("confirm", b"", signer=name_of(4), scope=terms.context)
    assert count({**good, name_of(4): confirmation}) == 3


@pytest.mark.parametrize("side", ["hospital", "coordinator"])
def test_a_session_needs_no_torch_and_no_network(side: str) -> None:
    # A process starts for every message of a deployment; only that of the training may take seconds to import.
    code = f"import sys, fedslm.secagg.{side}; print(sorted({{'torch', 'flwr', 'transformers'}} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_states_are_values(session: Session) -> None:
    session.share(ME)
    state = session.states[ME]
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.seat = b""  # type: ignore[misc, union-attr]
    assert copy.copy(state) == state
