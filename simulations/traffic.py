"""How many bytes a session moves at one hospital when nobody drops out: counted on messages of the real layout."""

from __future__ import annotations

from dataclasses import dataclass

from fedslm.crypto.identity import SIGNATURE_BYTES
from fedslm.crypto.seal import OVERHEAD_BYTES, PUBLIC_KEY_BYTES
from fedslm.governance.plan import Plan
from fedslm.governance.receipt import Head, Receipt
from fedslm.secagg.messages import (
    HASH_BYTES,
    NO_HEAD,
    Advert,
    ConfirmReply,
    ConfirmRequest,
    MaskedReply,
    MaskRequest,
    Opening,
    ShareList,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
)
from fedslm.secagg.seeds import SEED_BYTES
from fedslm.secagg.wire import Document, encode

HASH = bytes(HASH_BYTES)
SIGNATURE = bytes(SIGNATURE_BYTES)
LETTER_HEAD_BYTES = HASH_BYTES + 2  # context, sender, receiver


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes from and to a hospital, framing of Flower's not counted."""

    up: int
    down: int


def session_traffic(plan: Plan, name: str, *, frozen: int) -> Traffic:
    """What one session costs a hospital.

    Args:
      frozen: numbers in the adapter's frozen half, which travels down beside the trained one.
    """
    adapter = 4 * (plan.adapter.trained_parameters + frozen)
    if plan.secagg is None:
        return Traffic(up=4 * plan.adapter.trained_parameters, down=adapter + len(plan.to_bytes()))
    names = sorted(plan.names)
    n, u = len(names), names.index(name) + 1
    vector = bytes(-(-plan.vector_length * plan.secagg.ring_bits // 8))
    up: list[Document] = [
        _shares(names, u),
        MaskedReply(context=HASH, sender=u, vector=vector),
        ConfirmReply(context=HASH, sender=u, signature=SIGNATURE),
        UnmaskReply(context=HASH, sender=u, self_shares=bytes(SEED_BYTES * n), pair_shares=b""),
    ]
    everybody = tuple(range(1, n + 1))
    deliveries = tuple((encode(_listed(n, v)), bytes(_letter_bytes(n, v, u))) for v in everybody if v != u)
    down: list[Document] = [
        Opening(session=1, round=1, attempt=0, adverts=tuple(encode(_advert(member)) for member in names)),
        MaskRequest(context=HASH, deliveries=deliveries),
        ConfirmRequest(context=HASH, sharers=everybody, survivors=everybody),
        UnmaskRequest(context=HASH, confirmations=tuple((point, SIGNATURE) for point in everybody)),
    ]
    signed_plan = len(plan.to_bytes()) + SIGNATURE_BYTES + HASH_BYTES
    return Traffic(up=_bytes(up), down=adapter + _bytes(down) + len(down) * signed_plan)


def _bytes(documents: list[Document]) -> int:
    return sum(len(encode(document)) for document in documents)


def _advert(member: str) -> Advert:
    key = bytes(PUBLIC_KEY_BYTES)
    return Advert(member=member, serial=1, sealing_key=key, ledger_head=NO_HEAD, signature=SIGNATURE)


def _listed(n: int, u: int) -> ShareList:
    return ShareList(sender=u, hashes=(HASH,) * (n - 1), commitments=(HASH,) * (n - u + 1), signature=SIGNATURE)


def _shares(names: list[str], u: int) -> SharesReply:
    n = len(names)
    ciphertexts = tuple(bytes(_letter_bytes(n, u, v)) for v in range(1, n + 1) if v != u)
    shares, advert = encode(_listed(n, u)), encode(_advert(names[u - 1]))
    return SharesReply(
        context=HASH, shares=shares, ciphertexts=ciphertexts, next_advert=advert, receipt=_receipt(names[u - 1])
    )


def _receipt(name: str) -> bytes:
    """Of a first session: row 1 opens the ledger, row 2 reserves the plan."""
    head = Head(ledger=HASH.hex(), row=3, sha256=HASH.hex())
    return Receipt(hospital=name, head=head, run=HASH.hex(), session=1, signature=SIGNATURE).to_bytes()


def _letter_bytes(n: int, u: int, v: int) -> int:
    pair_seed = SEED_BYTES if u < v else 0
    return OVERHEAD_BYTES + LETTER_HEAD_BYTES + pair_seed + SEED_BYTES * (n - u + 1)
