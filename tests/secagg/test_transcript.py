"""One session written down: whoever speaks this protocol comes to these bytes, and so does an independent reference.

ML-DSA and HPKE draw on their own, so signatures and ciphertexts differ from run to run; all else is fixed by the seeds and
the randomness of the shares in `tests/vectors/secagg_transcript.json`. To make the file anew, after a change of the protocol
that is meant: `python -m tests.secagg.test_transcript`.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
from collections.abc import Callable
from hashlib import sha256, shake_256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedslm import errors
from fedslm.crypto.identity import SIGNATURE_BYTES, Identity
from fedslm.crypto.seal import SealingKey
from fedslm.secagg import hospital
from fedslm.secagg.encoding import Block, FixedPoint
from fedslm.secagg.hospital import Masked, Shared
from fedslm.secagg.messages import (
    Advert,
    ConfirmRequest,
    HeadProof,
    Invitation,
    JoinReply,
    MaskedReply,
    MaskRequest,
    ShareList,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
)
from fedslm.secagg.terms import Bounds, Terms, verify_proof
from fedslm.secagg.wire import MAGIC, VERSION, decode, encode
from tests.secagg import reference
from tests.secagg.session import (
    SCOPE,
    Session,
    advert,
    identity,
    kept,
    ledger_head,
    name_of,
    roster,
    sealing_key,
    terms_for,
)

FILE = Path(__file__).resolve().parents[1] / "vectors" / "secagg_transcript.json"
SEED = 32
Record = dict[str, Any]


@pytest.fixture(scope="module")
def record() -> Record:
    found: Record = json.loads(FILE.read_text())
    return found


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def cut(data: bytes) -> list[bytes]:
    return [data[start : start + SEED] for start in range(0, len(data), SEED)]


def pairs_of(record: Record) -> dict[tuple[int, int], bytes]:
    """r_uv by (u, v); with (u, u) the self seed of u."""
    return {
        (u, u + place): seed
        for u in range(1, 5)
        for place, seed in enumerate(cut(bytes.fromhex(record["seeds"][str(u)])))
    }


def terms_of(record: Record) -> Terms:
    told = record["terms"]
    return Terms(
        run_id=told["run_id"],
        session=told["session"],
        round=told["round"],
        plan_sha256=bytes.fromhex(told["plan_sha256"]),
        roster_sha256=bytes.fromhex(told["roster_sha256"]),
        adverts=tuple(decode(Advert, base64.b64decode(advert)) for advert in record["adverts"]),
        bounds=Bounds(n=4, colluders=told["colluders"], honest=told["honest"]),
        min_cohort=told["min_cohort"],
        fixed_point=FixedPoint(
            ring_bits=told["ring_bits"],
            parties=told["parties"],
            blocks=tuple(Block(name=name, length=d, value_range=c) for name, d, c in told["blocks"]),
        ),
        adapter_sha256=bytes.fromhex(told["adapter_sha256"]),
        config_sha256=bytes.fromhex(told["config_sha256"]),
    )


class Drawn:
    """Gives a hospital the seeds and then the coefficients that are written down."""

    def __init__(self, seeds: bytes, coefficients: bytes) -> None:
        self._left = [seeds, coefficients]

    def __call__(self, count: int) -> bytes:
        drawn = self._left.pop(0)
        assert len(drawn) == count
        return drawn


def replay(record: Record) -> Session:
    """The recorded session up to the masked vectors, by the code."""
    session = Session(terms_of(record))
    for point in session.points:
        seeds, coefficients = (bytes.fromhex(record[what][str(point)]) for what in ("seeds", "coefficients"))
        session.draw = Drawn(seeds, coefficients)
        session.coordinator.shares(point, session.share(point))
        session.levels[point] = np.array(record["levels"][str(point)], dtype=np.uint32)
    return session


# --- the record against its definition -----------------------------------------------------------------------------------


def test_the_context_is_as_defined(record: Record) -> None:
    told, adverts = record["terms"], terms_of(record).adverts
    numbers = (told["session"], told["round"], 4, 3, told["colluders"], told["honest"], told["min_cohort"])
    context = reference.context_of(
        run_id=told["run_id"],
        numbers=numbers,
        plan=bytes.fromhex(told["plan_sha256"]),
        roster=bytes.fromhex(told["roster_sha256"]),
        adverts=[
            reference.advert_bytes(one.member, one.serial, one.sealing_key, one.ledger_head, one.signature)
            for one in adverts
        ],
        fixed_point=reference.fixed_point_bytes(told["ring_bits"], told["parties"], told["blocks"]),
        adapter=bytes.fromhex(told["adapter_sha256"]),
        config=bytes.fromhex(told["config_sha256"]),
    )
    assert context.hex() == record["context"]


def test_commitments_and_letters_are_as_defined(record: Record) -> None:
    context, seeds = bytes.fromhex(record["context"]), pairs_of(record)
    for u in range(1, 5):
        own = bytes.fromhex(record["seeds"][str(u)])
        coefficients = bytes.fromhex(record["coefficients"][str(u)])
        expected = [
            reference.commitment("self" if v == u else "pair", context, u, v, seeds[u, v]).hex() for v in range(u, 5)
        ]
        assert record["commitments"][str(u)] == expected
        for v in set(range(1, 5)) - {u}:
            pair = seeds[u, v] if u < v else b""
            letter = context + bytes([u, v]) + pair + reference.share_of(own, coefficients, v)
            assert record["letters"][f"{u}>{v}"] == letter.hex()


def test_masked_vectors_are_as_defined(record: Record) -> None:
    context, seeds, bits = bytes.fromhex(record["context"]), pairs_of(record), record["terms"]["ring_bits"]
    pairs = {pair: seed for pair, seed in seeds.items() if pair[0] != pair[1]}
    for u in record["survivors"]:
        numbers = reference.masked(u, record["levels"][str(u)], seeds[u, u], pairs, context, bits)
        whole = sum(number << place * bits for place, number in enumerate(numbers))
        packed = whole.to_bytes(-(-len(numbers) * bits // 8), "little")
        assert record["masked"][str(u)] == packed.hex()


def test_the_revealed_shares_give_the_seeds_and_the_seeds_give_the_sum(record: Record) -> None:
    context, seeds, told = bytes.fromhex(record["context"]), pairs_of(record), record["terms"]
    survivors, bits = record["survivors"], told["ring_bits"]
    inside = [(min(v, w), max(v, w)) for v in survivors for w in range(1, 5) if w not in survivors]
    revealed = {
        point: cut(bytes.fromhex(record["revealed"][str(point)]["self_shares"]))
        + cut(bytes.fromhex(record["revealed"][str(point)]["pair_shares"]))
        for point in survivors
    }
    secrets = [(v, v) for v in survivors] + sorted(inside)
    found = {
        secret: reference.secret_of({point: shares[place] for point, shares in revealed.items()})
        for place, secret in enumerate(secrets)
    }
    assert found == {secret: seeds[secret] for secret in secrets}
    whole = {u: int.from_bytes(bytes.fromhex(record["masked"][str(u)]), "little") for u in survivors}
    length = len(record["sum"])
    vectors = {u: [number >> place * bits & 2**bits - 1 for place in range(length)] for u, number in whole.items()}
    own = {u: found[u, u] for u in survivors}
    total = reference.unmasked(vectors, own, {pair: found[pair] for pair in inside}, context, bits)
    assert total == record["sum"]
    levels = [record["levels"][str(u)] for u in survivors]
    assert total == [sum(column) % 2**bits for column in zip(*levels, strict=True)]


# --- the code against the record -----------------------------------------------------------------------------------------


def test_the_parties_are_the_recorded_ones(record: Record) -> None:
    terms = terms_of(record)
    for point, (seeds, key) in enumerate(zip(record["identities"], record["sealing_keys"], strict=True), start=1):
        found = Identity.from_seeds(*(bytes.fromhex(seed) for seed in seeds))
        assert found.public == identity(name_of(point)).public
        assert SealingKey.from_bytes(bytes.fromhex(key)).public == terms.adverts[point - 1].sealing_key


def test_the_code_comes_to_the_recorded_bytes(record: Record) -> None:
    session = replay(record)
    assert session.terms.context.hex() == record["context"]
    requests = dict(session.coordinator.mask_requests())
    for u, v in itertools.permutations(range(1, 5), 2):
        listed, ciphertext = decode(MaskRequest, requests[v]).deliveries[u - 1 - (u > v)]
        assert [one.hex() for one in decode(ShareList, listed).commitments] == record["commitments"][str(u)]
        info = session.terms.context + bytes([u, v])
        assert sealing_key(name_of(v), 1).open(ciphertext, info=info).hex() == record["letters"][f"{u}>{v}"]
    for point in record["survivors"]:
        reply = session.mask(point, requests[point])
        assert bytes(decode(MaskedReply, reply).vector).hex() == record["masked"][str(point)]
        session.coordinator.masked(point, reply)
    to_unmask = session.after_confirmations(session.coordinator.confirm_request())
    for point in record["survivors"]:
        reply = session.unmask(point, to_unmask)
        answer = decode(UnmaskReply, reply)
        told = record["revealed"][str(point)]
        assert (answer.self_shares.hex(), answer.pair_shares.hex()) == (told["self_shares"], told["pair_shares"])
        session.coordinator.revealed(point, reply)
    total = session.coordinator.finish() & np.uint32(2 ** record["terms"]["ring_bits"] - 1)
    assert total.tolist() == record["sum"]


def test_what_was_sealed_and_signed_then_is_still_taken(record: Record) -> None:
    session = replay(record)
    requests = dict(session.coordinator.mask_requests())
    told = record["delivery 1>2"]
    then = base64.b64decode(told["shares"]), base64.b64decode(told["ciphertext"])
    request = decode(MaskRequest, requests[2])
    mixed = dataclasses.replace(request, deliveries=(then, *request.deliveries[1:]))
    assert mixed != request
    state = session.states[2]
    assert isinstance(state, Shared)
    vector = session.levels[2].copy()
    _, reply = hospital.mask(kept(state), mixed, vector, keys=session.keys)
    assert bytes(reply.vector).hex() == record["masked"]["2"]


def test_a_head_that_was_proved_then_is_still_proved(record: Record) -> None:
    told = {what: base64.b64decode(data) for what, data in record["joining"].items()}
    answer = decode(JoinReply, told["reply"])
    found = verify_proof(decode(HeadProof, answer.proofs[0]), roster(4))
    assert (found.member, found.ledger_head) == (name_of(2), ledger_head(name_of(2), 1))
    plan, pinned = (bytes.fromhex(record["terms"][f"{what}_sha256"]) for what in ("plan", "roster"))
    fields = found.member, found.serial, found.sealing_key, found.ledger_head, found.signature
    proof = reference.proof_bytes(plan + pinned, reference.advert_bytes(*fields))
    assert answer.proofs == (proof,)
    assert told["reply"] == reference.join_bytes(base64.b64decode(record["adverts"][0]), [proof])
    known = [(name_of(u), ledger_head(name_of(u), 1)) for u in (3, 4)]
    assert told["invitation"] == reference.invitation_bytes(known, b"")
    assert decode(Invitation, told["invitation"]) == Invitation(known=tuple(known), own=b"")


# --- malformed messages --------------------------------------------------------------------------------------------------


def receivers(record: Record) -> dict[str, Callable[[bytes], object]]:
    """Who a malformed message is handed to: hospital 2, or the coordinator as from hospital 2, at each of the steps."""
    session = replay(record)
    requests = dict(session.coordinator.mask_requests())
    early, answer = session.states[2], {point: session.mask(point, requests[point]) for point in record["survivors"]}
    masked = session.states[2]
    assert isinstance(early, Shared)
    assert isinstance(masked, Masked)
    levels, keys = session.levels[2], session.keys
    at_step_2 = replay(record)
    at_step_2.coordinator.mask_requests()
    for point in record["survivors"]:
        session.coordinator.masked(point, answer[point])
    to_unmask = session.after_confirmations(session.coordinator.confirm_request())
    assert to_unmask
    return {
        "advert": lambda data: decode(Advert, data),
        "invitation": lambda data: decode(Invitation, data),
        "join": lambda data: decode(JoinReply, data),
        "proof": lambda data: verify_proof(decode(HeadProof, data), keys),
        "mask": lambda data: hospital.mask(early, decode(MaskRequest, data), levels.copy(), keys=keys),
        "confirm": lambda data: hospital.confirm(masked, decode(ConfirmRequest, data), identity=identity(name_of(2))),
        "unmask": lambda data: session.unmask(2, data),
        "shares": lambda data: Session(terms_of(record)).coordinator.shares(2, data),
        "masked": lambda data: at_step_2.coordinator.masked(2, data),
        "revealed": lambda data: session.coordinator.revealed(2, data),
    }


def test_each_malformed_message_is_refused_for_the_recorded_reason(record: Record) -> None:
    handed_to = receivers(record)
    for told in record["malformed"]:
        expected: type[Exception] = getattr(errors, told["error"])
        with pytest.raises(errors.ProtocolError) as refusal:
            handed_to[told["to"]](bytes.fromhex(told["message"]))
        assert type(refusal.value) is expected, told["why"]


def test_the_malformed_messages_are_many_and_name_many_reasons(record: Record) -> None:
    assert len(record["malformed"]) >= 25
    assert len({told["error"] for told in record["malformed"]}) >= 5
    assert {told["to"] for told in record["malformed"]} == receivers(record).keys()


# --- making the record ---------------------------------------------------------------------------------------------------


def malformed(context: bytes, listed: bytes) -> list[dict[str, str]]:
    """`listed` is the list of hospital 1, as signed."""
    unsigned = encode(dataclasses.replace(decode(ShareList, listed), signature=bytes(SIGNATURE_BYTES)))
    right = encode(ConfirmRequest(context=context, sharers=(1, 2, 3, 4), survivors=(1, 2, 4)))
    body = len(MAGIC) + 2 + 32
    proved = encode(advert(name_of(2)))

    def confirm(sharers: tuple[int, ...], survivors: tuple[int, ...], *, at: bytes = context) -> bytes:
        return encode(ConfirmRequest(context=at, sharers=sharers, survivors=survivors))

    def masked(vector: bytes, *, sender: int = 2, at: bytes = context) -> bytes:
        return encode(MaskedReply(context=at, sender=sender, vector=vector))

    def revealed(count: int, cut_count: int, *, sender: int = 2) -> bytes:
        shares, pairs = bytes(SEED * count), bytes(SEED * cut_count)
        return encode(UnmaskReply(context=context, sender=sender, self_shares=shares, pair_shares=pairs))

    cases = [
        *(("confirm", right[:length], "DecodeError", f"cut after {length} bytes") for length in (0, 4, 6, 37, 43)),
        ("confirm", right + b"\0", "DecodeError", "one byte too many"),
        ("confirm", b"FSLN" + right[4:], "DecodeError", "another magic"),
        ("confirm", MAGIC + bytes([VERSION + 1]) + right[5:], "DecodeError", "a version that does not exist"),
        ("confirm", right[:5] + b"\x08" + right[6:], "DecodeError", "another kind"),
        ("confirm", right[:body] + bytes([3, 2, 1, 3]) + bytes([2, 1, 2]), "DecodeError", "points not ascending"),
        ("confirm", right[:body] + bytes([3, 1, 1, 2]) + bytes([2, 1, 2]), "DecodeError", "a point twice"),
        ("confirm", right[:body] + bytes([3, 0, 1, 2]) + bytes([2, 1, 2]), "DecodeError", "the point zero"),
        ("confirm", confirm((1, 2, 3, 4), (1, 2, 4), at=bytes(32)), "ConsistencyError", "another context"),
        ("confirm", confirm((1, 2, 4), (1, 2, 4)), "ConsistencyError", "another U2"),
        ("confirm", confirm((1, 2, 3, 4), (1, 2)), "BoundError", "U3 too small"),
        ("confirm", confirm((1, 2, 3, 4), (1, 3, 4)), "BoundError", "U3 without the receiver"),
        ("confirm", confirm((1, 2, 3, 4), (1, 2, 5)), "BoundError", "U3 not within U2"),
        ("mask", encode(MaskRequest(context=context, deliveries=())), "BoundError", "U2 too small"),
        ("mask", encode(MaskRequest(context=bytes(32), deliveries=())), "ConsistencyError", "another context"),
        ("mask", encode(MaskRequest(context=context, deliveries=((b"", b""),))), "DecodeError", "a list that is none"),
        ("mask", encode(MaskRequest(context=context, deliveries=((unsigned, b""),))), "SignatureError", "an unsigned list"),
        ("mask", encode(MaskRequest(context=context, deliveries=((listed, b""),))), "SealError", "not the ciphertext listed"),
        ("unmask", encode(UnmaskRequest(context=context, confirmations=())), "ConsistencyError", "no signature"),
        ("unmask", encode(UnmaskRequest(context=bytes(32), confirmations=())), "ConsistencyError", "another context"),
        ("masked", masked(bytes(17), sender=1), "ConsistencyError", "in the name of another"),
        ("masked", masked(bytes(17), at=bytes(32)), "ConsistencyError", "another context"),
        ("masked", masked(bytes(16)), "DecodeError", "a vector too short"),
        ("masked", masked(bytes(18)), "DecodeError", "a vector too long"),
        ("masked", masked(bytes(16) + b"\x20"), "DecodeError", "bits set after the last number"),
        ("revealed", revealed(2, 3), "DecodeError", "a self share too few"),
        ("revealed", revealed(3, 4), "DecodeError", "a pair share too many"),
        ("revealed", revealed(3, 3, sender=4), "ConsistencyError", "in the name of another"),
        ("shares", encode(SharesReply(context=bytes(32), shares=b"", ciphertexts=(), next_advert=b"", receipt=b"")),
         "ConsistencyError", "another context"),
        ("shares", encode(SharesReply(context=context, shares=b"", ciphertexts=(), next_advert=b"", receipt=b"")),
         "DecodeError", "a list that is none"),
        ("invitation", MAGIC + bytes([VERSION, 13, 0, 2]) + (b"\1b" + bytes(72) + b"\1a" + bytes(72)) + bytes(4),
         "DecodeError", "names not ascending"),
        ("invitation", MAGIC + bytes([VERSION, 13, 0, 1]) + b"\1a" + bytes(40) + bytes(4),
         "DecodeError", "a head of 40 bytes"),
        ("join", MAGIC + bytes([VERSION, 15]) + bytes(4) + bytes([0, 17]) + bytes(4 * 17), "DecodeError", "17 proofs"),
        ("proof", encode(HeadProof(scope=SCOPE, advert=b"")), "DecodeError", "a proof without an advert"),
        ("proof", encode(HeadProof(scope=bytes(64), advert=proved)), "AdvertError", "for another plan and roster"),
        ("proof", encode(HeadProof(scope=SCOPE, advert=proved[:-1] + bytes([proved[-1] ^ 1]))),
         "AdvertError", "not signed by its hospital"),
        ("advert", MAGIC + bytes([VERSION, 1, 0]), "DecodeError", "an empty name"),
        ("advert", MAGIC + bytes([VERSION, 1, 1, 0xFF]), "DecodeError", "a name that is not UTF-8"),
    ]  # fmt: skip
    return [{"to": to, "message": data.hex(), "error": error, "why": why} for to, data, error, why in cases]


def regenerate() -> None:
    """Writes the record anew. Everything is derived by SHAKE-256 from a label but what ML-DSA and HPKE draw."""
    terms, survivors = terms_for(4, colluders=1, d=7, bits=19), (1, 2, 4)
    drawn = {
        u: shake_256(b"fedslm-secagg/1 transcript, hospital %d" % u).digest(3 * SEED * (5 - u)) for u in range(1, 5)
    }
    record: Record = {
        "origin": "made by tests/secagg/test_transcript.py (python -m tests.secagg.test_transcript); checked there against an "
        "independent reference. Four hospitals, T = 1, t = 3; hospital 3 shares and then drops out. Adverts, the delivery "
        "and the messages of joining are in base64, all other bytes in hex.",
        "terms": {
            "run_id": terms.run_id,
            "session": terms.session,
            "round": terms.round,
            "plan_sha256": terms.plan_sha256.hex(),
            "roster_sha256": terms.roster_sha256.hex(),
            "colluders": terms.bounds.colluders,
            "honest": terms.bounds.honest,
            "min_cohort": terms.min_cohort,
            "ring_bits": terms.fixed_point.ring_bits,
            "parties": terms.fixed_point.parties,
            "blocks": [[block.name, block.length, block.value_range] for block in terms.fixed_point.blocks],
            "adapter_sha256": terms.adapter_sha256.hex(),
            "config_sha256": terms.config_sha256.hex(),
        },
        "identities": [
            [sha256(f"{kind} {name_of(u)}".encode()).hexdigest() for kind in ("ed25519", "mldsa")] for u in range(1, 5)
        ],
        "sealing_keys": [sealing_key(name_of(u), 1).to_bytes().hex() for u in range(1, 5)],
        "adverts": [b64(encode(advert)) for advert in terms.adverts],
        "context": terms.context.hex(),
        "seeds": {str(u): data[: SEED * (5 - u)].hex() for u, data in drawn.items()},
        "coefficients": {str(u): data[SEED * (5 - u) :].hex() for u, data in drawn.items()},
        "survivors": list(survivors),
        "levels": {},
    }
    session = Session(terms)
    record["levels"] = {str(u): session.levels[u].tolist() for u in session.points}
    record |= outcome(replay(record), survivors)
    proof = HeadProof(scope=SCOPE, advert=encode(terms.adverts[1]))
    reply = JoinReply(advert=encode(terms.adverts[0]), proofs=(encode(proof),))
    known = tuple((name_of(u), ledger_head(name_of(u), 1)) for u in (3, 4))
    record["joining"] = {"invitation": b64(encode(Invitation(known=known, own=b""))), "reply": b64(encode(reply))}
    record["malformed"] = malformed(terms.context, base64.b64decode(record["delivery 1>2"]["shares"]))
    FILE.write_text(json.dumps(record, indent=1) + "\n")


def outcome(session: Session, survivors: tuple[int, ...]) -> Record:
    """What the code comes to."""
    requests = dict(session.coordinator.mask_requests())
    found: Record = {"commitments": {}, "letters": {}, "masked": {}, "revealed": {}}
    for u, v in itertools.permutations(range(1, 5), 2):
        listed, ciphertext = decode(MaskRequest, requests[v]).deliveries[u - 1 - (u > v)]
        found["commitments"][str(u)] = [one.hex() for one in decode(ShareList, listed).commitments]
        info = session.terms.context + bytes([u, v])
        found["letters"][f"{u}>{v}"] = sealing_key(name_of(v), 1).open(ciphertext, info=info).hex()
        if (u, v) == (1, 2):
            found["delivery 1>2"] = {"shares": b64(listed), "ciphertext": b64(ciphertext)}
    for u in survivors:
        reply = session.mask(u, requests[u])
        found["masked"][str(u)] = bytes(decode(MaskedReply, reply).vector).hex()
        session.coordinator.masked(u, reply)
    to_unmask = session.after_confirmations(session.coordinator.confirm_request())
    for u in survivors:
        answer = decode(UnmaskReply, session.unmask(u, to_unmask))
        shares = {"self_shares": answer.self_shares.hex(), "pair_shares": answer.pair_shares.hex()}
        found["revealed"][str(u)] = shares
        session.coordinator.revealed(u, encode(answer))
    bits = session.terms.fixed_point.ring_bits
    return found | {"sum": (session.coordinator.finish() & np.uint32(2**bits - 1)).tolist()}


if __name__ == "__main__":
    regenerate()
