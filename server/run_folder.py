"""A run is a folder: plan, settings, events, checkpoints, summary and the final adapter, each written whole or not at all."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
import yaml

from fedslm.errors import ConfigError, RunError
from fedslm.files import replace_file, sync
from fedslm.governance.plan import Plan
from fedslm.governance.roster import read_roster
from server.charter import Charter
from server.checkpoints import Checkpoint, Checkpoints, write_json

Arrays = Mapping[str, np.ndarray[Any, Any]]


class RunFolder:
    """The files of one run, locked against a second run while open.

    plan.json config.yaml events.jsonl sessions.json checkpoints/ summary.json adapter/
    and, of a masked run, roster.json plan.sig aggregate.safetensors receipts.jsonl
    """

    def __init__(self, path: Path) -> None:
        """Names the folder; `create` or `open` it next."""
        self.path = path
        self.events = path / "events.jsonl"
        self.adapter = path / "adapter"
        self.sessions = path / "sessions.json"
        self.aggregate = path / "aggregate.safetensors"
        self.receipts = path / "receipts.jsonl"
        self._lock: TextIO | None = None

    def create(
        self,
        plan: Plan,
        *,
        settings: Mapping[str, Any],
        description: Mapping[str, Any],
        initial: Arrays,
        roster: bytes | None = None,
        plan_signature: bytes | None = None,
    ) -> None:
        """Makes the folder with its plan, settings and the initial adapter as checkpoint 0.

        Args:
          roster: the consortium's signed roster, as `sign_roster` writes it; a masked plan needs it.
          plan_signature: the coordinator's over the plan, under that roster; a masked plan needs it.
        Raises:
          ConfigError: it holds a run already, another process has it, or a masked plan comes without roster or signature.
          RunError: it cannot be written.
        """
        if plan.masked and (roster is None or plan_signature is None):
            raise ConfigError("A masked plan needs the roster and the coordinator's signature; sign the plan first.")
        if (self.path / "plan.json").exists():
            raise ConfigError(f"{self.path} holds a run already; choose another run_folder, or resume={self.path}.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            (self.path / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=True))
            write_json(self.path / "adapter_config.json", description)
            self._checkpoints(plan, description).save(
                Checkpoint(round=0, sessions=0, adapter=dict(initial), strategy={})
            )
            for name, content in (
                ("roster.json", roster),
                ("plan.sig", plan_signature),
                ("plan.json", plan.to_bytes()),
            ):
                if content is not None:
                    (self.path / name).write_bytes(content)
            sync(self.path)
        except OSError as error:
            raise RunError(f"The run folder {self.path} cannot be written: {error.strerror}.") from None

    def open(self) -> None:
        """Takes an existing run.

        Raises:
          ConfigError: there is no run, or another process has it.
        """
        if not (self.path / "plan.json").is_file():
            raise ConfigError(f"{self.path} holds no run; name the folder of a run that was started.")
        self._take()

    def close(self) -> None:
        """Lets the folder go."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def plan(self) -> Plan:
        """The run's plan, read strictly."""
        return Plan.from_bytes((self.path / "plan.json").read_bytes())

    def charter(self) -> Charter:
        """The masked plan with its roster and signature, verified.

        Raises:
          RunError: a file is missing. RosterError, SignatureError: they do not belong together.
        """
        try:
            roster, signature = (self.path / "roster.json").read_bytes(), (self.path / "plan.sig").read_bytes()
        except OSError as error:
            raise RunError(
                f"The masked run in {self.path} lacks its roster or its plan's signature ({error.strerror}); "
                "put roster.json and plan.sig back."
            ) from None
        return Charter(plan=self.plan(), roster=read_roster(roster), signature=signature)

    def settings(self) -> dict[str, Any]:
        """The settings the run was started with."""
        return self._read("config.yaml", yaml.safe_load)

    def description(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        return self._read("adapter_config.json", json.loads)

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return self._checkpoints(self.plan(), self.description())

    def latest(self) -> Checkpoint:
        """The newest whole checkpoint.

        Raises:
          RunError: none is whole.
        """
        checkpoint = self.checkpoints().latest()
        if checkpoint is None:
            raise RunError(f"No checkpoint in {self.path} is whole; start the run again in a new folder.")
        return checkpoint

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces `summary.json` in one step.

        Raises:
          RunError: it cannot be written; the summary before stands.
        """
        try:
            replace_file(self.path / "summary.json", lambda path: write_json(path, summary))
        except OSError as error:
            raise RunError(
                f"The summary in {self.path} cannot be written: {error.strerror}; make room on the disk and resume."
            ) from None

    def _read(self, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            return dict(parse((self.path / name).read_text()))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise RunError(
                f"{self.path / name} is damaged; put a copy of the file back, or start the run again in a new folder."
            ) from None

    def _checkpoints(self, plan: Plan, description: Mapping[str, Any]) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", plan_sha256=plan.sha256, description=description)

    def _take(self) -> None:
        try:
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(f"The run folder {self.path} cannot be written: {error.strerror}.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ConfigError(
                f"Another process is running in {self.path}; wait for it or choose another run_folder."
            ) from None
        self._lock = lock
