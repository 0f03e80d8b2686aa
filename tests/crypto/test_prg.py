"""The stream against published vectors, and its promises: determinism, no bias, no leak of the key."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fedslm.crypto.prg import SecureStream, _hkdf_sha256, derive_key

KEY = bytes(range(32))


@pytest.mark.parametrize(
    ("key", "first_block"),
    [
        # NIST CAVP, AESAVS KeySbox256 count 0: the zero block, which is also block 0 of our counter.
        (
            "c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558",
            "46f2fb342d6f0ab477476fc501242c5f",
        ),
        # NIST CAVP, AESAVS VarTxt/VarKey 256: the zero key on the zero block.
        ("00" * 32, "dc95c078a2408989ad48a21492842087"),
    ],
)
def test_first_block_matches_nist_vectors(key: str, first_block: str) -> None:
    assert SecureStream(bytes.fromhex(key)).uint64(2).astype("<u8").tobytes().hex() == first_block


def test_block_k_is_the_cipher_of_k() -> None:
    # SP 800-38A F.5.5 with the counter starting at 0: the stream is ECB of the counter, big-endian.
    encryptor = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    blocks = b"".join(encryptor.update(counter.to_bytes(16, "big")) for counter in range(300))
    assert SecureStream(KEY).uint64(600).astype("<u8").tobytes() == blocks


def test_hkdf_matches_rfc_5869_case_3() -> None:
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert _hkdf_sha256(b"\x0b" * 22, info=b"", length=42).hex() == okm


@given(st.lists(st.integers(0, 40), max_size=8))
def test_reads_can_be_split_anywhere(sizes: list[int]) -> None:
    stream = SecureStream(KEY)
    parts = [stream.uint64(size) for size in sizes]
    assert np.array_equal(np.concatenate([*parts, stream.uint64(1)]), SecureStream(KEY).uint64(sum(sizes) + 1))


def test_reads_longer_than_the_zero_buffer_go_on_in_the_stream() -> None:
    long = SecureStream(KEY).uint64(300_001)
    stream = SecureStream(KEY)
    stream.uint64(300_000)
    assert long[-1] == stream.uint64(1)[0]


def test_os_streams_differ() -> None:
    assert not np.array_equal(SecureStream.from_os().uint64(4), SecureStream.from_os().uint64(4))


def test_uniform_lies_in_half_open_interval_and_is_flat() -> None:
    numbers = SecureStream(KEY).uniform(200_000)
    assert numbers.dtype == np.float64
    assert numbers.min() > 0.0
    assert numbers.max() <= 1.0
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # chi-square, 19 degrees of freedom, 99.9 %


@given(bound=st.integers(1, 2**63), count=st.integers(0, 50))
def test_below_stays_below(bound: int, count: int) -> None:
    numbers = SecureStream(KEY).below(bound, count)
    assert numbers.dtype == np.int64
    assert len(numbers) == count
    assert all(0 <= int(number) < bound for number in numbers)


def test_below_has_no_modulo_bias() -> None:
    # With bound = 3 * 2^61 a plain modulo would put 1/2, not 1/3, of the mass on the lowest third.
    numbers = SecureStream(KEY).below(3 * 2**61, 60_000)
    counts = np.histogram(numbers.astype(np.float64), bins=3, range=(0, 3 * 2.0**61))[0]
    assert np.abs(counts - 20_000).max() < 600  # 5 standard deviations


@pytest.mark.parametrize("bound", [0, -1, 2**63 + 1])
def test_below_refuses_impossible_bounds(bound: int) -> None:
    with pytest.raises(ValueError, match="bound"):
        SecureStream(KEY).below(bound, 1)


def test_derived_keys_depend_on_label_and_context() -> None:
    keys = {
        derive_key(KEY, label=label, context=context)
        for label, context in [("self", b""), ("pair", b""), ("self", b"1"), ("selfx", b""), ("self", b"x")]
    }
    assert len(keys) == 5
    assert derive_key(KEY, label="self", context=b"1") == derive_key(KEY, label="self", context=b"1")


def test_keys_never_show() -> None:
    stream = SecureStream(KEY)
    assert KEY.hex() not in repr(stream)
    assert "hidden" in repr(stream)
    with pytest.raises(TypeError, match="key"):
        pickle.dumps(stream)


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_wrong_key_lengths_are_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecureStream(key)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="count"):
        SecureStream(KEY).uint64(-1)
    with pytest.raises(ValueError, match="label"):
        derive_key(KEY, label="")
    with pytest.raises(ValueError, match="secret"):
        derive_key(b"short", label="self")
