"""Canonical bytes: one value has one encoding, and no other spelling of it is read back."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedslm.encoding import arrays_sha256, canonical_bytes, parse_canonical, sha256_hex
from fedslm.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXTS, VALUES))
def test_what_is_written_reads_back_and_is_written_alike(value: dict[str, object]) -> None:
    data = canonical_bytes(value)
    assert parse_canonical(data) == value
    assert canonical_bytes(parse_canonical(data)) == data


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert canonical_bytes(dict(reversed(value.items()))) == canonical_bytes(value)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, min_size=1))
def test_no_indented_spelling_is_read(value: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        parse_canonical(json.dumps(value, indent=1).encode())


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_read_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        value = parse_canonical(data)
    except ConfigError:
        return
    assert canonical_bytes(value) == data


@pytest.mark.parametrize(
    "spelling",
    [
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1.00}',
        b'{"a":1e0}',
        b'{"a":-0}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":1}\n',
        b"[1]",
        b"1",
        b"",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"1" * 5000 + b"}",
    ],
    ids=lambda spelling: repr(spelling[:24]),
)
def test_every_other_spelling_is_refused(spelling: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_canonical(spelling)


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": {1, 2}}, b"bytes", "\ud800", {1: "a", "1": "b"}], ids=repr)
def test_what_json_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(ConfigError):
        canonical_bytes({"value": value})


def test_the_bytes_are_sorted_dense_and_unescaped() -> None:
    assert canonical_bytes({"é": 1.0, "a": [True, None, 1e-06]}) == '{"a":[true,null,1e-06],"é":1.0}'.encode()
    assert sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_the_hash_of_arrays_depends_on_names_shapes_and_values_only() -> None:
    zeros, ones = np.zeros((2, 3), np.float32), np.ones(2, np.float32)
    known = arrays_sha256({"a": zeros, "b": ones})
    assert arrays_sha256({"b": ones, "a": zeros}) == known
    assert arrays_sha256({"a": np.asfortranarray(zeros), "b": ones.astype(">f4")}) == known
    assert arrays_sha256({"a": zeros.T, "b": ones}) != known
    assert arrays_sha256({"a": zeros, "c": ones}) != known
    assert arrays_sha256({"a": zeros, "b": -ones}) != known
    assert arrays_sha256({"a": zeros}) != known
