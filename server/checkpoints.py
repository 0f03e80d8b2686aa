"""Checkpoints: one folder a round, whole or not there.

Written under a temporary name, flushed, then renamed, so that a crash or a full disk leaves the one before intact. The
adapter is in PEFT's own format and can be tried at once; the strategy's state beside it makes a resumed run go on as if
nothing had happened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from fedslm.encoding import sha256_hex
from fedslm.errors import RunError
from fedslm.files import sync

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
STRATEGY_FILE = "strategy.safetensors"
STATE_FILE = "state.json"
KEPT = 2

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The federation after a round.

    Attributes:
      round: the last whole round, 0 for the start.
      sessions: sessions every hospital has been asked for so far; what epsilon is counted in.
      adapter: every array of the adapter, trained and frozen, float32 by PEFT name.
      strategy: the strategy's state arrays.
    """

    round: int
    sessions: int
    adapter: dict[str, np.ndarray[Any, Any]]
    strategy: dict[str, np.ndarray[Any, Any]]


class Checkpoints:
    """The folder `checkpoints/` of one run."""

    def __init__(self, folder: Path, *, plan_sha256: str, description: Mapping[str, Any]) -> None:
        """Opens the folder; makes it at the first save.

        Args:
          plan_sha256: a checkpoint of another plan is not this run's.
          description: content of `adapter_config.json`.
        """
        self._folder = folder
        self._plan_sha256 = plan_sha256
        self._description = dict(description)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint and drops all but the start and the last two.

        Raises:
          RunError: the disk is full or not writable; the checkpoint before is intact.
        """
        target = self._folder / _name(checkpoint.round)
        temporary = self._folder / f".writing-{checkpoint.round:05d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._write(temporary, checkpoint)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            sync(self._folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(
                f"The checkpoint of round {checkpoint.round} cannot be written: {error.strerror}; "
                "make room on the disk and resume, the round before is intact."
            ) from None
        self._prune()
        return target

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole and belongs to the plan, or None."""
        for folder in self._newest_first():
            checkpoint = self._read(folder)
            if checkpoint is not None:
                return checkpoint
        return None

    def initial(self) -> Checkpoint:
        """Checkpoint 0, which is kept for ever.

        Raises:
          RunError: it is damaged or gone.
        """
        checkpoint = self._read(self._folder / _name(0))
        if checkpoint is None:
            raise RunError(f"The initial adapter in {self._folder} is damaged; start the run again in a new folder.")
        return checkpoint

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        write_adapter(folder, checkpoint.adapter, self._description)
        _write_arrays(folder / STRATEGY_FILE, checkpoint.strategy)
        state = {
            "round": checkpoint.round,
            "sessions": checkpoint.sessions,
            "plan_sha256": self._plan_sha256,
            "sha256": {name: sha256_hex((folder / name).read_bytes()) for name in (WEIGHTS_FILE, STRATEGY_FILE)},
        }
        write_json(folder / STATE_FILE, state)
        for path in (*folder.iterdir(), folder):
            sync(path)

    def _read(self, folder: Path) -> Checkpoint | None:
        try:
            state = json.loads((folder / STATE_FILE).read_text())
            files = (WEIGHTS_FILE, STRATEGY_FILE)
            intact = all(sha256_hex((folder / name).read_bytes()) == state["sha256"][name] for name in files)
            if not intact or state["plan_sha256"] != self._plan_sha256:
                return None
            return Checkpoint(
                round=int(state["round"]),
                sessions=int(state["sessions"]),
                adapter=dict(load_file(folder / WEIGHTS_FILE)),
                strategy=dict(load_file(folder / STRATEGY_FILE)),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob("round-*"), reverse=True)

    def _prune(self) -> None:
        for old in self._newest_first()[KEPT:]:
            if old.name != _name(0):
                shutil.rmtree(old, ignore_errors=True)


def _name(number: int) -> str:
    return f"round-{number:05d}"


def write_adapter(folder: Path, adapter: Arrays, description: Mapping[str, Any]) -> None:
    """Writes the two files that `PeftModel.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_arrays(folder / WEIGHTS_FILE, adapter)
    write_json(folder / CONFIG_FILE, description)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON that a person can read, keys sorted."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_arrays(path: Path, arrays: Arrays) -> None:
    # Not `save_file`: a full disk is an error of its own there, here it is the OSError that it is everywhere else.
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
