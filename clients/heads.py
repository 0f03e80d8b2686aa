"""What this hospital remembers of others' ledgers, and was shown of its own: the newest head that each one signed.

A ledger that was set back shows: its hospital signed a later row before, and somebody has seen it. Others' heads come with
the adverts of a session; one's own comes back with an invitation.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Mapping

from clients.database import Database
from fedslm.crypto.identity import PublicIdentity
from fedslm.errors import AdvertError, LedgerError
from fedslm.governance.receipt import Head
from fedslm.secagg.messages import MAX_PROOFS, Advert, HeadProof
from fedslm.secagg.terms import verify_proof
from fedslm.secagg.wire import decode, encode

_SEEN = "SELECT proof FROM heads WHERE signer = ? AND ledger = ? AND scope = ?"


def see_adverts(
    database: Database, adverts: Iterable[Advert], *, scope: bytes, keys: Mapping[str, PublicIdentity]
) -> None:
    """Remembers the heads in verified adverts, and refuses one that is behind what was seen in the same run.

    Of two runs at once each has adverts that were issued before the other's last booking: across runs an older head
    proves nothing, and is for its own hospital to judge when it is shown the newer one.

    Args:
      scope: what the adverts are for, 64 bytes.
      keys: the members' keys; a hospital is known by its key, whatever its name in a consortium.
    Raises:
      AdvertError: a hospital's ledger was set back, or has two histories. RunError: this cannot be remembered.
    """
    with database.transaction() as db:
        for advert in adverts:
            _see(db, advert, scope=scope, key=keys[advert.member])


def _see(db: sqlite3.Connection, advert: Advert, *, scope: bytes, key: PublicIdentity) -> None:
    head, signer = _head_in(advert), key.to_bytes()
    _refuse_another_ledger(db, advert, head, signer, scope)
    found = db.execute(_SEEN, (signer, head.ledger, scope)).fetchone()
    if found is not None:
        seen = _head(bytes(found[0]))
        if head.row < seen.row or (head.row == seen.row and head.sha256 != seen.sha256):
            raise AdvertError(
                f"The ledger of {advert.member} ends at row {head.row}, and this hospital has seen its row {seen.row}: an "
                f"older copy was restored there; {advert.member} must restore the newest."
            )
    _remember(db, HeadProof(scope=scope, advert=encode(advert)), head, signer)


def _refuse_another_ledger(db: sqlite3.Connection, advert: Advert, head: Head, signer: bytes, scope: bytes) -> None:
    query = "SELECT 1 FROM heads WHERE signer = ? AND scope = ? AND ledger <> ?"
    if db.execute(query, (signer, scope, head.ledger)).fetchone() is not None:
        raise AdvertError(
            f"{advert.member} began another ledger within the run; it can take part in the next, once it has restored the "
            "one it had."
        )


def _remember(db: sqlite3.Connection, proof: HeadProof, head: Head, signer: bytes) -> None:
    values = (signer, head.ledger, proof.scope, head.row, encode(proof))
    db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)", values)


def newer_proofs(
    database: Database, known: Mapping[str, Head], *, keys: Mapping[str, PublicIdentity]
) -> tuple[bytes, ...]:
    """Proofs of heads that are newer than those the coordinator knows, of at most 16 hospitals drawn at random.

    Args:
      known: by member, what it knows.
      keys: of the members whose heads are wanted.
    """
    with database.reading() as db:
        found = [proof for name, key in keys.items() for proof in _newer(db, key, known.get(name))]
    secrets.SystemRandom().shuffle(found)
    return tuple(found[:MAX_PROOFS])


def _newer(db: sqlite3.Connection, key: PublicIdentity, known: Head | None) -> list[bytes]:
    # SQLite takes the other columns of the row that has the maximum.
    query = "SELECT ledger, MAX(number), proof FROM heads WHERE signer = ? GROUP BY ledger"
    rows = db.execute(query, (key.to_bytes(),)).fetchall()
    return [
        bytes(proof) for ledger, number, proof in rows if known is None or ledger != known.ledger or number > known.row
    ]


def note_claim(database: Database, proof: HeadProof, *, me: str, key: PublicIdentity) -> Head:
    """Remembers a head of this hospital's own that it was shown.

    Raises:
      AdvertError: this hospital did not sign it. RunError: it cannot be remembered.
    """
    advert = verify_proof(proof, {me: key})
    head = _head_in(advert)
    with database.transaction() as db:
        found = db.execute(_SEEN, (key.to_bytes(), head.ledger, proof.scope)).fetchone()
        if found is None or head.row > _head(bytes(found[0])).row:
            _remember(db, proof, head, key.to_bytes())
    return head


def claims(db: sqlite3.Connection, key: PublicIdentity) -> list[Head]:
    """Heads of this hospital's own that it was shown."""
    rows = db.execute("SELECT proof FROM heads WHERE signer = ?", (key.to_bytes(),)).fetchall()
    return [_head(bytes(proof)) for (proof,) in rows]


def _head(proof: bytes) -> Head:
    return _head_in(decode(Advert, decode(HeadProof, proof).advert))


def _head_in(advert: Advert) -> Head:
    try:
        return Head.from_bytes(advert.ledger_head)
    except LedgerError:
        raise AdvertError(f"The advert of {advert.member} names no row of a ledger; it must keep one.") from None
