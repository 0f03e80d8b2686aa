"""A checkpoint is whole or not there, and what a crash or a full disk leaves behind can be gone on from."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedslm.errors import RunError
from fedslm.files import replace_file
from server.checkpoints import STATE_FILE, STRATEGY_FILE, WEIGHTS_FILE, Checkpoint, Checkpoints

PLAN = "a" * 64


def checkpoint(number: int) -> Checkpoint:
    rng = np.random.default_rng(number)
    return Checkpoint(
        round=number,
        sessions=number + 1,
        adapter={"lora_A": rng.normal(size=(8, 64)).astype(np.float32), "lora_B": np.zeros((64, 8), np.float32)},
        strategy={"m/lora_B": rng.normal(size=(64, 8))},
    )


def opened(folder: Path, *, plan: str = PLAN) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", plan_sha256=plan, description={"peft_type": "LORA"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@contextlib.contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which the operating system reports like a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_is_saved_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    opened(tmp_path).save(checkpoint(3))
    read, saved = opened(tmp_path).latest(), checkpoint(3)
    assert read is not None
    assert (read.round, read.sessions) == (3, 4)
    for name, array in (saved.adapter | saved.strategy).items():
        found = (read.adapter | read.strategy)[name]
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_the_start_and_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        opened(tmp_path).save(checkpoint(number))
    assert names(tmp_path) == ["round-00000", "round-00003", "round-00004"]
    assert opened(tmp_path).initial().round == 0


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert opened(tmp_path).latest() is None


@pytest.mark.parametrize("bytes_left", [0, 100, 2500])
def test_a_full_disk_is_one_sentence_and_the_round_before_stands(tmp_path: Path, bytes_left: int) -> None:
    for number in range(2):
        opened(tmp_path).save(checkpoint(number))
    with full_disk(bytes_left), pytest.raises(RunError, match=r"round 2 cannot be written: .+; make room .* intact\."):
        opened(tmp_path).save(checkpoint(2))
    assert names(tmp_path) == ["round-00000", "round-00001"]
    latest = opened(tmp_path).latest()
    assert latest is not None
    assert latest.round == 1
    opened(tmp_path).save(checkpoint(2))
    assert names(tmp_path) == ["round-00000", "round-00001", "round-00002"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.mkdir"])
def test_a_disk_that_fails_at_any_call_leaves_the_round_before(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path).save(checkpoint(1))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(RunError, match="No space left on device"):
            opened(tmp_path).save(checkpoint(2))
    assert names(tmp_path) == ["round-00001"]


def test_a_crash_while_writing_leaves_the_round_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path).save(checkpoint(1))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", crash)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path).save(checkpoint(2))
    latest = opened(tmp_path).latest()
    assert latest is not None
    assert latest.round == 1
    opened(tmp_path).save(checkpoint(2))
    assert names(tmp_path) == ["round-00001", "round-00002"]


@pytest.mark.parametrize("file", [WEIGHTS_FILE, STRATEGY_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, file: str, damage: str) -> None:
    for number in range(3):
        opened(tmp_path).save(checkpoint(number))
    path = tmp_path / "checkpoints" / "round-00002" / file
    data = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[:-3])
        case "flipped":
            path.write_bytes(bytes([data[0] ^ 1, *data[1:]]))
    latest = opened(tmp_path).latest()
    assert latest is not None
    assert latest.round == 1


@pytest.mark.parametrize(
    "state", [[], None, {}, {"sha256": {}}, {"sha256": {}, "plan_sha256": PLAN}, {"sha256": [1]}], ids=repr
)
def test_a_state_of_another_kind_is_passed_over(tmp_path: Path, state: object) -> None:
    for number in range(2):
        opened(tmp_path).save(checkpoint(number))
    (tmp_path / "checkpoints" / "round-00001" / STATE_FILE).write_text(json.dumps(state))
    latest = opened(tmp_path).latest()
    assert latest is not None
    assert latest.round == 0


def test_a_checkpoint_of_another_plan_is_not_this_runs(tmp_path: Path) -> None:
    opened(tmp_path).save(checkpoint(0))
    opened(tmp_path, plan="b" * 64).save(checkpoint(1))
    latest = opened(tmp_path).latest()
    assert latest is not None
    assert latest.round == 0


def test_a_run_without_its_start_says_so(tmp_path: Path) -> None:
    opened(tmp_path).save(checkpoint(0))
    shutil.rmtree(tmp_path / "checkpoints" / "round-00000")
    with pytest.raises(RunError, match="start the run again"):
        opened(tmp_path).initial()


def test_a_file_is_replaced_whole_and_is_on_the_disk_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", list[str]()
    replace_file(path, lambda new: new.write_text("old"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    replace_file(path, lambda new: new.write_text("new"))
    assert path.read_text() == "new"
    assert synced == [str(tmp_path / ".file"), str(tmp_path)]
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, lambda new: new.write_text("old"))

    def interrupted(new: Path) -> None:
        new.write_text("half of it")
        raise KeyboardInterrupt

    with full_disk(5), pytest.raises(OSError, match="large"):
        replace_file(path, lambda new: new.write_text("longer than that"))
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, interrupted)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
