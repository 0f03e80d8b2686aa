"""Canonical bytes: one value, one encoding, so that hashes and signatures mean the same everywhere.

JSON with sorted keys, no white space, UTF-8 without escapes, no NaN or infinity, no duplicate keys when read back. Floats
are written as the shortest text that reads back to the same binary64 (Python's `repr`, as in RFC 8785).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedslm.errors import ConfigError


def canonical_bytes(value: Any) -> bytes:
    """Encodes nested dicts, lists, strings, numbers, booleans and None.

    Raises:
      ConfigError: a NaN, an infinity, a lone surrogate, or a type JSON does not have.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"A value cannot be written canonically: {error}.") from None


def parse_canonical(data: bytes) -> dict[str, Any]:
    """Reads an object back and refuses every other spelling of it.

    Raises:
      ConfigError: not UTF-8 JSON, not an object, or not byte for byte what `canonical_bytes` writes.
    """
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise ConfigError("The document is not UTF-8 JSON; it was damaged or is of another kind.") from None
    if not isinstance(value, dict) or canonical_bytes(value) != data:
        raise ConfigError("The document is not in canonical form; it was edited or written by something else.")
    return value


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def arrays_sha256(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over named float32 NumPy arrays: sorted names, shapes and little-endian bytes.

    Unlike a file's hash it does not depend on the container's version or padding.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical_bytes([name, list(array.shape), "float32"]))
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def pack(*fields: bytes) -> bytes:
    """Joins byte strings so that no two lists of them give the same bytes: each after its length in four bytes."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
