"""Files that hold identities: private ones that only their owner can read, and public ones to hand out.

A file starts with a line that names whose it is. That line is a label and nothing more: it is not signed, and what binds a
name to a key is the roster.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from fedslm.config.schema import NAME_PATTERN
from fedslm.crypto.identity import Identity, PublicIdentity, is_encrypted, is_private
from fedslm.errors import ConfigError

_LABEL = "FedSLM identity of "


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """What a key file says to everybody who can read it, without a passphrase.

    Attributes:
      label: whose it is, as its first line says; empty where it does not.
      public: the public half.
      is_private: whether it holds private keys as well.
      is_encrypted: whether these need a passphrase.
    """

    label: str
    public: PublicIdentity
    is_private: bool
    is_encrypted: bool


def public_path(path: Path | str) -> Path:
    """Where the public half of the identity at `path` is written: the same with ".pub" after it."""
    return Path(f"{path}.pub")


def write_identity(path: Path | str, identity: Identity, passphrase: bytes | None, *, name: str = "") -> None:
    """Writes an identity for its owner's eyes only, and its public half beside it.

    Args:
      path: of the private file (mode 0600); the public one has ".pub" after it (mode 0644).
      passphrase: encrypts the private keys; None leaves them in the clear.
      name: whose it is, written into the first line of both.

    Raises:
      ConfigError: either file exists (neither is ever overwritten) or cannot be written.
    """
    label = f"{_LABEL}{name}\n".encode() if name else b""
    private = identity.to_pem(passphrase)
    create_file(public_path(path), label + identity.public.to_pem(), mode=0o644)
    try:
        create_file(path, label + private, mode=0o600)
    except ConfigError:
        public_path(path).unlink()  # ours, made a moment ago; a public half alone is of no use
        raise


def read_identity(path: Path | str, passphrase: bytes | None) -> Identity:
    """Reads an identity with its private keys.

    Raises:
      ConfigError: there is none, others can read the file, or the passphrase is wrong, missing or needless.
    """
    data = _read(path, secret=True)
    try:
        return Identity.from_pem(data, passphrase)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_public(path: Path | str) -> PublicIdentity:
    """Reads a public identity.

    Raises:
      ConfigError: there is none, or the file holds private keys and should not have been handed out.
    """
    found = read_key_file(path)
    if found.is_private:
        raise ConfigError(f"{path} holds private keys, which nobody else may have; use its public half {path}.pub.")
    return found.public


def read_key_file(path: Path | str) -> KeyFile:
    """Reads the public part of a private or public file.

    Raises:
      ConfigError: there is no such file, or it holds no identity.
    """
    data = _read(path, secret=False)
    try:
        public = PublicIdentity.from_pem(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return KeyFile(label=_label(data), public=public, is_private=is_private(data), is_encrypted=is_encrypted(data))


def read_passphrase(path: Path | str) -> bytes:
    """Reads a passphrase from a file of one line; the line's end is no part of it.

    Raises:
      ConfigError: there is none, others can read the file, or it does not hold exactly one line.
    """
    lines = _read(path, secret=True).splitlines()
    if len(lines) != 1 or not lines[0]:
        raise ConfigError(f"{path} holds {len(lines)} lines; a passphrase is one line that is not empty.")
    return lines[0]


def create_file(path: Path | str, data: bytes, *, mode: int) -> None:
    """Writes a new file, with exactly these permissions from its first moment on.

    Raises:
      ConfigError: the file exists (it is left as it is) or cannot be written (nothing is left of it).
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o700)
    except FileExistsError:
        raise ConfigError(f"{path} exists and is not overwritten; choose another file or move it away.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask is
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        Path(path).unlink()
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None


def _read(path: Path | str, *, secret: bool) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if secret and mode & 0o077:
                raise ConfigError(
                    f"{path} can be read by others (mode {mode:04o}); run: chmod 600 {shlex.quote(str(path))}"
                )
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


def _label(data: bytes) -> str:
    first = data.split(b"\n", 1)[0].decode("ascii", "replace").strip()
    name = first.removeprefix(_LABEL)
    # Whoever wrote the file chose this text: nothing but a name gets to a terminal.
    return name if name != first and re.fullmatch(NAME_PATTERN, name) else ""
