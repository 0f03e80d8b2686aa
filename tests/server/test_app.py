"""The ServerApp in a process of its own: it locks the run folder, puts a failure on record, and goes on with a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from fedslm.config.schema import FedAvgConfig
from fedslm.errors import (
    ConfigError,
    RosterError,
    RunError,
    SignatureError,
    TooFewHospitalsError,
)
from fedslm.flower.bundle import RUN_FOLDER_KEY
from fedslm.flower.records import ErrorCode
from fedslm.governance.plan import Plan
from fedslm.governance.receipt import Receipt
from fedslm.reporting.events import Event, read_events
from server.app import build_server_app, serve
from server.run_folder import RunFolder
from simulations.local_grid import LocalGrid
from tests.builders import UNPRIVATE, masked_plan, toy_plan
from tests.fakes import Arrays, Behaviour, adds, hospital_app, refuses
from tests.masked import MaskedHospital, charter_of, masked_app, masked_hospitals, roster_bytes

INITIAL = {"x.lora_A.weight": np.ones((2, 3), np.float32), "x.lora_B.weight": np.zeros((3, 2), np.float32)}


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


# --- a masked run -----------------------------------------------------------------------------------------------------


def masked() -> Plan:
    sizes = {"training": {"rounds": 2}, "adapter": {"trained_parameters": 6}}
    return masked_plan(**sizes, privacy=UNPRIVATE, strategy=FedAvgConfig(name="fedavg"))


def halves(index: int, number: int, trained: Arrays) -> Arrays:
    return {name: np.full_like(array, 0.5) for name, array in trained.items()}


@pytest.fixture
def masked_folder(tmp_path: Path) -> Path:
    """A prepared masked run that nobody has open."""
    signature = charter_of(masked()).signature
    with RunFolder(tmp_path / "masked") as run:
        parts = {"settings": {}, "description": {"peft_type": "LORA"}, "initial": INITIAL}
        run.create(masked(), **parts, roster=roster_bytes(masked()), plan_signature=signature)
    return tmp_path / "masked"


def secure(hospitals: dict[str, MaskedHospital]) -> LocalGrid:
    return LocalGrid(masked_app(hospitals), [{"hospital": name} for name in hospitals])


def test_a_masked_run_is_run_to_its_end_and_says_what_it_promised(masked_folder: Path) -> None:
    assert serve(secure(masked_hospitals(masked(), halves)), masked_folder).round == 2
    events = list(read_events(masked_folder / "events.jsonl"))
    (started,) = [event.fields for event in events if event.kind == "run_started"]
    assert started["masked"] is True
    assert started["bound"] == "0 of 3 may collude with the coordinator; 1 may drop out of a session"
    summary = json.loads((masked_folder / "summary.json").read_text())
    assert (summary["masked"], summary["bound"], summary["sessions"]) == (True, started["bound"], 2)
    adapter = load_file(masked_folder / "adapter" / "adapter_model.safetensors")
    assert (adapter["x.lora_B.weight"] > 0).all()
    receipts = [Receipt.from_bytes(line) for line in (masked_folder / "receipts.jsonl").read_bytes().splitlines()]
    assert sorted((receipt.session, receipt.hospital) for receipt in receipts) == [
        (session, name) for session in (1, 2) for name in masked().names
    ]
    assert "on. The coordinator read only sums of updates" in (masked_folder / "adapter" / "README.md").read_text()


def test_no_single_update_is_in_the_run_folder(masked_folder: Path) -> None:
    values = {0: 0.123456, 1: -0.234567, 2: 0.345678}

    def update(index: int, number: int, trained: Arrays) -> Arrays:
        return {name: np.full_like(array, values[index]) for name, array in trained.items()}

    serve(secure(masked_hospitals(masked(), update)), masked_folder)
    written = b"".join(path.read_bytes() for path in masked_folder.rglob("*") if path.is_file())
    first = load_file(masked_folder / "checkpoints" / "round-00001" / "adapter_model.safetensors")["x.lora_B.weight"]
    np.testing.assert_allclose(first, np.mean(list(values.values())), atol=1e-7)
    assert first.tobytes() in written
    assert not any(np.float32(value).tobytes() in written for value in values.values())


def test_a_run_that_loses_too_many_ends_with_the_model_it_had_and_goes_on_when_they_are_back(
    masked_folder: Path,
) -> None:
    hospitals = masked_hospitals(masked(), halves)
    for name in ("hospital-0", "hospital-1"):
        hospitals[name].tamper = lambda step, data: b"" if step == "mask" else data
    with pytest.raises(
        TooFewHospitalsError, match=r"hospital-0 \(MALFORMED in mask\), hospital-1 \(MALFORMED in mask\)"
    ):
        serve(secure(hospitals), masked_folder)
    summary = json.loads((masked_folder / "summary.json").read_text())
    # Of three sessions one is left for the second round.
    assert (summary["status"], summary["rounds"], summary["sessions"]) == ("failed", 0, 2)
    initial = RunFolder(masked_folder).latest()
    assert initial.round == 0
    assert all(np.array_equal(array, INITIAL[name]) for name, array in initial.adapter.items())
    end = serve(secure(masked_hospitals(masked(), halves)), masked_folder)
    assert (end.round, end.sessions) == (2, 4)


def test_a_run_that_was_cut_short_goes_on_with_the_sessions_it_has_left(masked_folder: Path) -> None:
    hospitals = masked_hospitals(masked(), halves)

    class Cut:
        def notify(self, event: Event) -> None:
            if event.kind == "hospital_masked":
                raise KeyboardInterrupt

    with secure(hospitals) as grid, pytest.raises(KeyboardInterrupt):
        serve(grid, masked_folder, observers=(Cut(),))
    end = serve(secure(hospitals), masked_folder)
    assert (end.round, end.sessions) == (2, 3)
    events = list(read_events(masked_folder / "events.jsonl"))
    started = [event.fields for event in events if event.kind == "session_started"]
    assert [(fields["round"], fields["session"], fields["attempt"]) for fields in started] == [
        (1, 1, 0),
        (1, 2, 0),
        (2, 3, 0),
    ]


def test_a_masked_run_without_signature_or_with_another_roster_does_not_start(masked_folder: Path) -> None:
    grid = secure(masked_hospitals(masked(), halves))
    signature = (masked_folder / "plan.sig").read_bytes()
    (masked_folder / "plan.sig").write_bytes(bytes(len(signature)))
    with pytest.raises(SignatureError):
        serve(grid, masked_folder)
    (masked_folder / "plan.sig").unlink()
    with pytest.raises(
        RunError, match=r"lacks its roster or its plan's signature .*put roster\.json and plan\.sig back"
    ):
        serve(grid, masked_folder)
    (masked_folder / "plan.sig").write_bytes(signature)
    (masked_folder / "roster.json").write_bytes(b"{}")
    with pytest.raises(RosterError):
        serve(grid, masked_folder)
    assert not (masked_folder / "sessions.json").exists()


@pytest.mark.parametrize("config", [{}, {RUN_FOLDER_KEY: ""}])
def test_a_submission_without_a_run_folder_is_refused(config: dict[str, str]) -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=RUN_FOLDER_KEY):
        build_server_app()(grid(adds(0.5)), context)
