"""A ledger's head, signed by its hospital, and the receipt that a session is booked in it.

Heads and receipts are how others remember a hospital's ledger: neither an older copy put back nor a booking taken out
escapes somebody who holds one. They say how long a ledger is and what its last row hashes to, nothing of what it holds.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from fedslm.config.schema import STRICT, Name, build
from fedslm.crypto.identity import SIGNATURE_BYTES, Identity, PublicIdentity
from fedslm.encoding import canonical_bytes, pack, parse_canonical
from fedslm.errors import ConfigError, LedgerError
from fedslm.governance.plan import Sha256

HEAD_BYTES = 72
"""Bytes in a head: the ledger's id (32), the row's number (8, big endian), the row's hash (32)."""

NO_HEAD = bytes(HEAD_BYTES)
"""Stands where a head would, for a hospital without a ledger."""

MAX_ROW = 2**63 - 1  # the largest integer of SQLite
RECEIPT_VERSION = 1

RowNumber = Annotated[int, Field(ge=1, le=MAX_ROW, strict=True)]
SessionNumber = Annotated[int, Field(ge=1, lt=2**32, strict=True)]


def _signature(value: object) -> bytes:
    data = bytes.fromhex(value) if isinstance(value, str) else value
    if not isinstance(data, bytes) or len(data) != SIGNATURE_BYTES:
        raise ValueError(f"expected a signature of {SIGNATURE_BYTES} bytes")
    return data


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Head:
    """A row of a ledger, and through the chain of hashes everything before it.

    Attributes:
      ledger: the ledger's id, which is the hash of its first row.
      row: number of the row, at least 1.
      sha256: hash of that row.
    """

    ledger: Sha256
    row: RowNumber
    sha256: Sha256

    def to_bytes(self) -> bytes:
        """The 72 bytes that are signed and sent."""
        return bytes.fromhex(self.ledger) + self.row.to_bytes(8, "big") + bytes.fromhex(self.sha256)

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Reads what `to_bytes` wrote.

        Raises:
          LedgerError: another length, or a row that no ledger has; `NO_HEAD` is none.
        """
        if len(data) != HEAD_BYTES:
            raise LedgerError(f"The head of a ledger has {HEAD_BYTES} bytes, found {len(data)}; it was damaged.")
        row = int.from_bytes(data[32:40], "big")
        if not 1 <= row <= MAX_ROW:
            raise LedgerError(f"The head of a ledger names row {row}, which no ledger has; rows count from 1.")
        return cls(ledger=data[:32].hex(), row=row, sha256=data[40:].hex())


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Receipt:
    """A hospital's word that a session is booked in its ledger. It gives it before it reveals a share.

    Attributes:
      hospital: who signs, as the roster names it.
      head: the row in which the session is booked.
      run: hash of the plan.
      session: its number in the run, from 1.
      signature: by the hospital; `verify` checks it.
    """

    hospital: Name
    head: Head
    run: Sha256
    session: SessionNumber
    signature: Annotated[bytes, PlainValidator(_signature)]

    @classmethod
    def sign(cls, identity: Identity, *, hospital: str, head: Head, run: str, session: int) -> Receipt:
        """Makes a receipt, signed."""
        body = _body(head, run, session)
        signature = identity.sign("receipt", body, signer=hospital, scope=_scope(head))
        return cls(hospital=hospital, head=head, run=run, session=session, signature=signature)

    def verify(self, key: PublicIdentity) -> None:
        """Checks that the hospital signed this.

        Raises:
          SignatureError: `key` did not, or signed another head, run or session.
        """
        body = _body(self.head, self.run, self.session)
        key.verify("receipt", body, self.signature, signer=self.hospital, scope=_scope(self.head))

    def to_bytes(self) -> bytes:
        """The canonical encoding, one line of JSON without its end."""
        values = dataclasses.asdict(self) | {"version": RECEIPT_VERSION, "signature": self.signature.hex()}
        return canonical_bytes(values)

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Reads what `to_bytes` wrote, strictly. Its signature is not checked here.

        Raises:
          LedgerError: damaged, not canonical, of another version, with an unknown field or an impossible value.
        """
        try:
            values = parse_canonical(data)
            version = values.pop("version", None)
            if version != RECEIPT_VERSION:
                raise ConfigError(f"it has version {version!r}; this release reads version {RECEIPT_VERSION}.")
            receipt = build(cls, values)
            if receipt.to_bytes() != data:  # capitals in hex, 1.0 for 1: one receipt has one spelling
                raise ConfigError("it is not in canonical form; it was edited or written by something else.")
        except ConfigError as error:
            raise LedgerError(f"The receipt is refused: {error}") from None
        return receipt


def sign_head(identity: Identity, head: Head, *, hospital: str) -> bytes:
    """The hospital's signature on the head of its ledger; what the ledger held then can be denied no more."""
    return identity.sign("ledger", head.to_bytes(), signer=hospital, scope=_scope(head))


def verify_head(key: PublicIdentity, head: Head, signature: bytes, *, hospital: str) -> None:
    """Checks that a hospital signed a head.

    Raises:
      SignatureError: `key` did not, or signed another head.
    """
    key.verify("ledger", head.to_bytes(), signature, signer=hospital, scope=_scope(head))


def _scope(head: Head) -> bytes:
    return bytes.fromhex(head.ledger)


def _body(head: Head, run: str, session: int) -> bytes:
    return pack(head.to_bytes(), bytes.fromhex(run), session.to_bytes(4, "big"))
