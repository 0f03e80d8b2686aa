"""Private files are their owner's alone and never overwritten; every refusal is a sentence that says what to do."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fedslm.crypto.identity import Identity
from fedslm.errors import ConfigError
from fedslm.governance.keyfiles import (
    create_file,
    public_path,
    read_identity,
    read_key_file,
    read_passphrase,
    read_public,
    write_identity,
)

ALICE = Identity.from_seeds(bytes(32), bytes(32))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_identity(tmp_path / "a key.pem", ALICE, None, name="St. Elsewhere 2")
    return tmp_path / "a key.pem"


def secret(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_an_identity_reads_back_from_its_file(key: Path) -> None:
    assert read_identity(key, None).public == ALICE.public
    assert read_public(public_path(key)) == ALICE.public
    assert public_path(key).name == "a key.pem.pub"


def test_an_encrypted_identity_needs_its_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_identity(path, ALICE, b"correct horse")
    assert read_identity(path, b"correct horse").public == ALICE.public
    assert read_key_file(path).is_encrypted
    for passphrase, named in [(b"wrong", "passphrase is wrong"), (None, "give its passphrase")]:
        with pytest.raises(ConfigError, match=f"key.pem: .*{named}"):
            read_identity(path, passphrase)


def test_the_mask_of_the_process_changes_no_permission(tmp_path: Path) -> None:
    for mask in (0o000, 0o277):
        before = os.umask(mask)
        try:
            write_identity(tmp_path / f"{mask}.pem", ALICE, None)
        finally:
            os.umask(before)
        assert (mode(tmp_path / f"{mask}.pem"), mode(tmp_path / f"{mask}.pem.pub")) == (0o600, 0o644)


@pytest.mark.parametrize("taken", ["key.pem", "key.pem.pub"])
def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(ConfigError, match=f"{taken} exists and is not overwritten"):
        write_identity(tmp_path / "key.pem", ALICE, None)
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exists"):
        write_identity(tmp_path / "key.pem", ALICE, None)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent/key\.pem\.pub cannot be written: No such file"):
        write_identity(tmp_path / "absent" / "key.pem", ALICE, None)


def test_a_full_disk_leaves_no_part_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        create_file(tmp_path / "key.pem", b"data", mode=0o600)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o660, 0o666, 0o620, 0o601])
def test_a_private_file_that_others_can_touch_is_refused(key: Path, permissions: int) -> None:
    key.chmod(permissions)
    with pytest.raises(ConfigError, match=rf"mode 0{permissions:o}.*run: chmod 600 '.*a key\.pem'"):
        read_identity(key, None)


@pytest.mark.parametrize("permissions", [0o600, 0o400])
def test_a_private_file_of_ones_own_is_read(key: Path, permissions: int) -> None:
    key.chmod(permissions)
    assert read_identity(key, None).public == ALICE.public


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (read_public, read_key_file, read_passphrase, lambda path: read_identity(path, None)):
        with pytest.raises(ConfigError, match=r"key\.pem cannot be read: No such file"):
            read(tmp_path / "key.pem")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, data: bytes) -> None:
    path = secret(tmp_path / "key.pem", data)
    with pytest.raises(ConfigError, match=r"key\.pem: This holds no private keys"):
        read_identity(path, None)
    for read in (read_public, read_key_file):
        with pytest.raises(ConfigError, match=r"key\.pem: This holds no FedSLM identity"):
            read(path)


def test_a_private_file_is_not_taken_for_a_public_one(key: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds private keys.*use its public half .*a key\.pem\.pub"):
        read_public(key)


def test_both_files_say_whose_they_are(key: Path) -> None:
    private, public = read_key_file(key), read_key_file(public_path(key))
    assert private.label == public.label == "St. Elsewhere 2"
    assert private.public == public.public == ALICE.public
    assert (private.is_private, private.is_encrypted, public.is_private) == (True, False, False)


@pytest.mark.parametrize(
    "first", [b"", b"hospital-1\n", b"FedSLM identity of \x1b[2J\n", b"FedSLM identity of \n", b"\xff\n"]
)
def test_only_a_name_is_taken_from_the_first_line(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(first + ALICE.public.to_pem())
    assert read_key_file(path).label == ""


@pytest.mark.parametrize("data", [b"correct horse", b"correct horse\n", b"correct horse\r\n"])
def test_a_passphrase_is_one_line_without_its_end(tmp_path: Path, data: bytes) -> None:
    assert read_passphrase(secret(tmp_path / "passphrase", data)) == b"correct horse"


@pytest.mark.parametrize("data", [b"", b"\n", b"one\ntwo\n", b"\none"])
def test_a_passphrase_of_no_or_more_lines_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ConfigError, match="one line that is not empty"):
        read_passphrase(secret(tmp_path / "passphrase", data))


def test_a_passphrase_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = secret(tmp_path / "passphrase", b"correct horse")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644.*chmod 600") as caught:
        read_passphrase(path)
    assert "horse" not in str(caught.value)
