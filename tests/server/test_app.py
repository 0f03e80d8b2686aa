"""The ServerApp in a process of its own: it locks the run folder, puts a failure on record, and goes on with a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from fedslm.errors import ConfigError, TooFewHospitalsError
from fedslm.flower.bundle import RUN_FOLDER_KEY
from fedslm.flower.records import ErrorCode
from fedslm.governance.plan import Plan
from fedslm.reporting.events import read_events
from server.app import build_server_app, serve
from server.run_folder import RunFolder
from simulations.local_grid import LocalGrid
from tests.builders import toy_plan
from tests.fakes import Behaviour, adds, hospital_app, refuses

INITIAL = {"x.lora_A.weight": np.ones((2, 3), np.float32), "x.lora_B.weight": np.zeros((3, 2), np.float32)}
UNPRIVATE = {"mode": "none", "epsilon": None, "noise_multiplier": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared run that nobody has open."""
    with RunFolder(tmp_path / "run") as run:
        run.create(plan(), settings={}, description={"peft_type": "LORA"}, initial=INITIAL)
    return tmp_path / "run"


def plan() -> Plan:
    return toy_plan(training={"rounds": 2}, privacy=UNPRIVATE)


def grid(behaviour: Behaviour) -> LocalGrid:
    names = plan().names
    return LocalGrid(hospital_app(dict.fromkeys(names, behaviour)), [{"hospital": name} for name in names])


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in read_events(folder / "events.jsonl")]


def test_a_prepared_run_is_run_to_its_end(folder: Path) -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={RUN_FOLDER_KEY: str(folder)})
    build_server_app()(grid(adds(0.5)), context)
    assert kinds(folder)[-1] == "run_finished"
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert np.array_equal(adapter["x.lora_A.weight"], INITIAL["x.lora_A.weight"])
    assert (adapter["x.lora_B.weight"] > 0).all()


def test_a_failure_is_on_record_and_the_run_can_go_on(folder: Path) -> None:
    with pytest.raises(TooFewHospitalsError):
        serve(grid(refuses(ErrorCode.DATA_UNUSABLE)), folder)
    last = list(read_events(folder / "events.jsonl"))[-1]
    assert (last.kind, last.fields["code"]) == ("run_failed", "TooFewHospitalsError")
    assert serve(grid(adds(0.5)), folder).round == 2


def test_two_processes_cannot_run_one_folder(folder: Path) -> None:
    with RunFolder(folder) as other:
        other.open()
        with pytest.raises(ConfigError, match="Another process"):
            serve(grid(adds(0.5)), folder)
    assert not (folder / "events.jsonl").exists()


@pytest.mark.parametrize("config", [{}, {RUN_FOLDER_KEY: ""}])
def test_a_submission_without_a_run_folder_is_refused(config: dict[str, str]) -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=RUN_FOLDER_KEY):
        build_server_app()(grid(adds(0.5)), context)
