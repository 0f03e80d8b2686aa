"""A folder holds one run, one process has it at a time, and nothing in it is half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedslm.errors import ConfigError, RunError
from server.run_folder import RunFolder
from tests.builders import masked_plan, toy_plan
from tests.masked import charter_of, roster_bytes
from tests.server.test_checkpoints import full_disk

INITIAL = {"lora_A": np.ones((2, 2), np.float32)}
SETTINGS = {"rounds": 3, "privacy": {"epsilon": 8.0}}


def created(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create(toy_plan(), settings=SETTINGS, description={"r": 4}, initial=INITIAL)
    return folder


def test_what_was_put_in_is_found_again(tmp_path: Path) -> None:
    created(tmp_path / "run").close()
    with RunFolder(tmp_path / "run") as folder:
        folder.open()
        assert folder.plan() == toy_plan()
        assert folder.settings() == SETTINGS
        assert folder.description() == {"r": 4}
        assert folder.latest().round == 0
        np.testing.assert_array_equal(folder.latest().adapter["lora_A"], INITIAL["lora_A"])


def test_a_masked_run_has_its_roster_and_signature_beside_its_plan(tmp_path: Path) -> None:
    plan, parts = masked_plan(), {"settings": SETTINGS, "description": {"r": 4}, "initial": INITIAL}
    signed = {"roster": roster_bytes(plan), "plan_signature": charter_of(plan).signature}
    for missing in signed:
        with pytest.raises(ConfigError, match="needs the roster and the coordinator's signature"):
            RunFolder(tmp_path / "run").create(plan, **parts, **{**signed, missing: None})
    assert not (tmp_path / "run").exists()
    with RunFolder(tmp_path / "run") as folder:
        folder.create(plan, **parts, **signed)
        assert folder.charter() == charter_of(plan)


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    created(tmp_path / "run").close()
    with pytest.raises(ConfigError, match=r"holds a run already; .* resume="):
        created(tmp_path / "run")


def test_only_one_process_has_a_run(tmp_path: Path) -> None:
    first, second = created(tmp_path / "run"), RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match="Another process is running"):
        second.open()
    first.close()
    second.open()
    with pytest.raises(ConfigError, match="Another process is running"):
        first.open()
    second.close()


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        RunFolder(tmp_path).open()
    with pytest.raises(ConfigError, match="holds no run"):
        RunFolder(tmp_path / "missing").open()


def test_a_run_that_cannot_be_written_is_no_run(tmp_path: Path) -> None:
    with full_disk(10), pytest.raises(RunError, match="cannot be written"):
        created(tmp_path / "run")
    assert not (tmp_path / "run" / "plan.json").exists()
    created(tmp_path / "run").close()


def test_a_place_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        created(tmp_path / "run")


def test_a_run_without_a_whole_checkpoint_says_so(tmp_path: Path) -> None:
    folder = created(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "round-00000" / "state.json").unlink()
    with pytest.raises(RunError, match=r"No checkpoint in .* is whole"):
        folder.latest()


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [", b"\xff"], ids=repr)
def test_damaged_settings_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    folder = created(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.yaml"):
        folder.settings()


def test_a_summary_is_replaced_whole(tmp_path: Path) -> None:
    folder = created(tmp_path / "run")
    folder.write_summary({"status": "finished"})
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with full_disk(5), pytest.raises(RunError, match="summary"):
        folder.write_summary({"status": "failed"})
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
