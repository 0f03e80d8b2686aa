"""Who somebody is: a long-term pair of signing keys, Ed25519 and ML-DSA-65, that count only together.

A forger has to break both: the curve, which a quantum computer could, and the lattice, which is young. What a signature is
for (its purpose), who makes it and what it is bound to are part of what is signed, so that none can be taken for another.

Keys as PEM text in, PEM text out; the files are those of `fedslm/governance/keyfiles.py`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedslm.crypto.prg import KEY_BYTES
from fedslm.crypto.seal import lock, unlock
from fedslm.encoding import pack
from fedslm.errors import ConfigError, SealError, SignatureError

PURPOSES = frozenset({"plan", "roster", "advert", "shares", "confirm", "abort", "ledger", "receipt"})
"""What a signature can be for."""

_ED25519_SIGNATURE_BYTES = 64
_ED25519_PUBLIC_BYTES = 32
_MLDSA_PUBLIC_BYTES = 1952

SIGNATURE_BYTES = _ED25519_SIGNATURE_BYTES + 3309
"""Bytes in a signature: Ed25519's, then ML-DSA-65's."""

PUBLIC_BYTES = _ED25519_PUBLIC_BYTES + _MLDSA_PUBLIC_BYTES
"""Bytes in a public identity: Ed25519's key, then ML-DSA-65's."""

_PROTOCOL = b"fedslm/1"
_ENCRYPTED = "FEDSLM ENCRYPTED IDENTITY"
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\n.*?-----END \1-----\n?", re.DOTALL)
_SALT_BYTES = 16
_SCRYPT_COST = 2**17  # 128 MiB and about half a second a guess


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicIdentity:
    """The public half of an identity.

    Attributes:
      ed25519: 32 bytes.
      mldsa: 1952 bytes, the key of ML-DSA-65.

    Raises:
      ValueError: a key has another length.
    """

    ed25519: bytes
    mldsa: bytes

    def __post_init__(self) -> None:
        if (len(self.ed25519), len(self.mldsa)) != (_ED25519_PUBLIC_BYTES, _MLDSA_PUBLIC_BYTES):
            raise ValueError(
                f"Expected public keys of {_ED25519_PUBLIC_BYTES} and {_MLDSA_PUBLIC_BYTES} bytes, "
                f"found {len(self.ed25519)} and {len(self.mldsa)}."
            )

    def to_bytes(self) -> bytes:
        """Both keys, 1984 bytes."""
        return self.ed25519 + self.mldsa

    @classmethod
    def from_bytes(cls, data: bytes) -> PublicIdentity:
        """Reads what `to_bytes` wrote.

        Raises:
          ValueError: `data` does not have 1984 bytes.
        """
        return cls(ed25519=data[:_ED25519_PUBLIC_BYTES], mldsa=data[_ED25519_PUBLIC_BYTES:])

    @property
    def fingerprint(self) -> str:
        """Twelve groups of five digits, 199 bits, to compare by voice: "12345 67890 ..."."""
        digest = hashlib.sha512(self.to_bytes()).digest()
        groups = (int.from_bytes(digest[start : start + 5], "big") % 100_000 for start in range(0, 60, 5))
        return " ".join(f"{group:05d}" for group in groups)

    def verify(self, purpose: str, body: bytes, signature: bytes, *, signer: str, scope: bytes) -> None:
        """Checks a signature by this identity; both halves of it must be right.

        Args:
          purpose: one of `PURPOSES`.
          body, signer, scope: as they were signed; nothing of them is carried in the signature.

        Raises:
          SignatureError: either half is wrong, or the length is.
          ValueError: `purpose` is none.
        """
        message = _message(purpose, body, signer=signer, scope=scope)
        halves = signature[:_ED25519_SIGNATURE_BYTES], signature[_ED25519_SIGNATURE_BYTES:]
        try:
            Ed25519PublicKey.from_public_bytes(self.ed25519).verify(halves[0], message)
            MLDSA65PublicKey.from_public_bytes(self.mldsa).verify(halves[1], message, context=purpose.encode())
        except InvalidSignature:
            raise SignatureError(
                f"The signature of '{signer}' (purpose '{purpose}') does not verify; "
                "it was altered, made by another key, or made for something else."
            ) from None

    def to_pem(self) -> bytes:
        """Both keys as standard PEM blocks (SubjectPublicKeyInfo, RFC 8410 and RFC 9881)."""
        keys = Ed25519PublicKey.from_public_bytes(self.ed25519), MLDSA65PublicKey.from_public_bytes(self.mldsa)
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return b"".join(key.public_bytes(*form) for key in keys)

    @classmethod
    def from_pem(cls, data: bytes) -> PublicIdentity:
        """Reads the public half out of what `to_pem` wrote, here or in `Identity`. Text around the blocks is skipped.

        Raises:
          ConfigError: the text does not hold exactly one Ed25519 and one ML-DSA-65 public key.
        """
        try:
            keys = [serialization.load_pem_public_key(block) for block in _blocks(data, "PUBLIC KEY")]
        except (ValueError, UnsupportedAlgorithm):
            raise _not_an_identity() from None
        match keys:
            case [Ed25519PublicKey() as ed25519, MLDSA65PublicKey() as mldsa]:
                return cls(ed25519=ed25519.public_bytes_raw(), mldsa=mldsa.public_bytes_raw())
        raise _not_an_identity()


class Identity:
    """A pair of private signing keys. Make one with `generate`; its `repr` shows the public fingerprint only."""

    __slots__ = ("_ed25519", "_mldsa")

    def __init__(self, ed25519: Ed25519PrivateKey, mldsa: MLDSA65PrivateKey) -> None:
        self._ed25519 = ed25519
        self._mldsa = mldsa

    @classmethod
    def generate(cls) -> Identity:
        """Makes an identity from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate(), MLDSA65PrivateKey.generate())

    @classmethod
    def from_seeds(cls, ed25519_seed: bytes, mldsa_seed: bytes) -> Identity:
        """Makes the identity that belongs to two secret seeds of 32 bytes (RFC 8032 and FIPS 204).

        Raises:
          ValueError: a seed does not have 32 bytes.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(ed25519_seed), MLDSA65PrivateKey.from_seed_bytes(mldsa_seed))

    @property
    def public(self) -> PublicIdentity:
        """The half to hand out."""
        return PublicIdentity(
            ed25519=self._ed25519.public_key().public_bytes_raw(), mldsa=self._mldsa.public_key().public_bytes_raw()
        )

    def sign(self, purpose: str, body: bytes, *, signer: str, scope: bytes) -> bytes:
        """Signs with both keys.

        Args:
          purpose: one of `PURPOSES`; also the context string of ML-DSA.
          body: what is said.
          signer: by whom, as the roster names them.
          scope: within what: a session's context, a plan and roster, or nothing.

        Returns:
          3373 bytes. ML-DSA's part differs from call to call.

        Raises:
          ValueError: `purpose` is none.
        """
        message = _message(purpose, body, signer=signer, scope=scope)
        return self._ed25519.sign(message) + self._mldsa.sign(message, context=purpose.encode())

    def to_pem(self, passphrase: bytes | None) -> bytes:
        """The public half in the clear, then the private keys.

        Without a passphrase they are two standard PKCS #8 blocks. With one they are a block of our own: PKCS #8 as this
        library writes it hashes the passphrase 2048 times, a millisecond a guess for a thief; scrypt takes half a second.

        Raises:
          ConfigError: an empty passphrase.
        """
        private = self._plain_blocks() if passphrase is None else self._encrypted_block(passphrase)
        return self.public.to_pem() + private

    @classmethod
    def from_pem(cls, data: bytes, passphrase: bytes | None) -> Identity:
        """Reads what `to_pem` wrote. Text around the blocks is skipped.

        Args:
          passphrase: needed for encrypted keys, and refused for others: somebody believes a file safe that is not.

        Raises:
          ConfigError: no identity, a wrong, missing or needless passphrase, or halves that do not belong together.
        """
        if not is_private(data):
            raise ConfigError("This holds no private keys of an identity; the file without .pub at its end does.")
        if passphrase is None and is_encrypted(data):
            raise ConfigError("The identity is encrypted; give its passphrase.")
        if passphrase is not None and not is_encrypted(data):
            raise ConfigError("The identity is not encrypted but a passphrase was given; leave the passphrase out.")
        found = cls._load(data) if passphrase is None else cls._decrypt(data, passphrase)
        if PublicIdentity.from_pem(data) != found.public:
            raise ConfigError("The identity's public and private keys do not belong together; restore the file.")
        return found

    def __repr__(self) -> str:
        return f"Identity({self.public.fingerprint}, private keys hidden)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("An Identity holds private keys and is never pickled or copied.")

    def _plain_blocks(self) -> bytes:
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self._ed25519.private_bytes(*form) + self._mldsa.private_bytes(*form)

    def _encrypted_block(self, passphrase: bytes) -> bytes:
        if not passphrase:
            raise ConfigError("The passphrase is empty; choose one, or say that the identity is to have none.")
        salt = os.urandom(_SALT_BYTES)
        seeds = self._ed25519.private_bytes_raw() + self._mldsa.private_bytes_raw()
        body = salt + lock(_stretch(passphrase, salt), seeds, associated=_ENCRYPTED.encode())
        text = base64.b64encode(body).decode()
        lines = [text[start : start + 64] for start in range(0, len(text), 64)]
        return "\n".join([f"-----BEGIN {_ENCRYPTED}-----", *lines, f"-----END {_ENCRYPTED}-----", ""]).encode()

    @classmethod
    def _load(cls, data: bytes) -> Identity:
        try:
            keys = [serialization.load_pem_private_key(block, None) for block in _blocks(data, "PRIVATE KEY")]
        except (ValueError, UnsupportedAlgorithm):
            raise _not_an_identity() from None
        match keys:
            case [Ed25519PrivateKey() as ed25519, MLDSA65PrivateKey() as mldsa]:
                return cls(ed25519, mldsa)
        raise _not_an_identity()

    @classmethod
    def _decrypt(cls, data: bytes, passphrase: bytes) -> Identity:
        blocks = _blocks(data, _ENCRYPTED)
        if len(blocks) != 1:
            raise _not_an_identity()
        try:
            body = base64.b64decode(b"".join(blocks[0].splitlines()[1:-1]), validate=True)
            key = _stretch(passphrase, body[:_SALT_BYTES])
            seeds = unlock(key, body[_SALT_BYTES:], associated=_ENCRYPTED.encode())
        except (SealError, binascii.Error):
            raise ConfigError("The passphrase is wrong, or the identity's file is damaged.") from None
        return cls.from_seeds(seeds[:32], seeds[32:])


def is_private(data: bytes) -> bool:
    """Whether PEM text holds private keys, encrypted or not."""
    return is_encrypted(data) or bool(_blocks(data, "PRIVATE KEY"))


def is_encrypted(data: bytes) -> bool:
    """Whether PEM text holds an identity that needs a passphrase."""
    return bool(_blocks(data, _ENCRYPTED))


def _message(purpose: str, body: bytes, *, signer: str, scope: bytes) -> bytes:
    if purpose not in PURPOSES:
        raise ValueError(f"Expected a purpose among {', '.join(sorted(PURPOSES))}, found {purpose!r}.")
    return pack(_PROTOCOL, purpose.encode(), signer.encode(), scope, body)


def _stretch(passphrase: bytes, salt: bytes) -> bytes:
    """Scrypt, so that trying passphrases on a stolen file costs memory and time (RFC 7914)."""
    return Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_COST, r=8, p=1).derive(passphrase)


def _blocks(data: bytes, label: str) -> list[bytes]:
    text = data.decode("latin-1").replace("\r\n", "\n")
    return [found[0].encode("latin-1") for found in _BLOCK.finditer(text) if found[1] == label]


def _not_an_identity() -> ConfigError:
    return ConfigError(
        "This holds no FedSLM identity of one Ed25519 and one ML-DSA-65 key; make one: fedslm identity new."
    )
