"""`runtime=ray`: the same federation in Flower's simulation engine."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import load_file

from fedslm.config.schema import RuntimeConfig
from fedslm.errors import ConfigError, TooFewHospitalsError
from fedslm.flower.compat import quiet
from fedslm.reporting.events import Event, read_events
from simulations.ray_runtime import run_with_ray
from simulations.run import RunResult, simulate
from tests.toys import toy_overrides

ROOT = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (fedslm[ray])")
pytestmark = [pytest.mark.integration, needs_ray]


def same_adapter(one: RunResult, other: RunResult) -> bool:
    first, second = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def events_in(folder: Path) -> list[Event]:
    path = folder / "events.jsonl"
    return list(read_events(path)) if path.exists() else []


def seconds(events: tuple[Event, ...]) -> list[float]:
    return [event.fields["seconds"] for event in events if event.kind == "round_finished"]


def test_ray_gives_the_adapter_of_the_local_runtime_and_keeps_its_models(tmp_path: Path) -> None:
    overrides = toy_overrides(tmp_path, "evaluation.every_rounds=0")
    local = simulate([*overrides, f"run_folder={tmp_path / 'local'}"])
    ray = simulate([*overrides, f"run_folder={tmp_path / 'ray'}", "runtime=ray"])
    assert same_adapter(local, ray)
    assert [event.kind for event in ray.events].count("hospital_masked") == 9
    # The first round pays for the imports and the base model in every actor; a later one pays again if none is kept.
    first, *_, last = seconds(ray.events)
    assert last < first / 2


def test_what_the_server_raises_comes_out_as_it_was_raised(tmp_path: Path) -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        raise TooFewHospitalsError("too few")

    quiet()
    with pytest.raises(TooFewHospitalsError, match="too few") as raised:
        run_with_ray(app, sites=tmp_path, nodes=2, runtime=RuntimeConfig(name="ray"))
    assert raised.value.exit_code == 4
    assert "FEDSLM_SITES" not in os.environ


def test_clients_larger_than_the_machine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cpus_per_client=100000"):
        run_with_ray(ServerApp(), sites=tmp_path, nodes=2, runtime=RuntimeConfig(name="ray", cpus_per_client=100000))


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    overrides = toy_overrides(tmp_path, "evaluation.every_rounds=0", "rounds=12")
    interrupted = tmp_path / "interrupted"
    command = [sys.executable, "-m", "fedslm", "simulate", *overrides, f"run_folder={interrupted}", "runtime=ray"]
    output = tmp_path / "output.txt"
    with output.open("wb") as out:
        started = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_for_a_checkpoint(interrupted, started)
            os.killpg(started.pid, signal.SIGINT)  # a terminal sends it to Ray's processes as well
            assert started.wait(60) == 130
        finally:
            started.kill()
            started.wait()
    assert events_in(interrupted)[-1].kind == "run_interrupted"
    shown = output.read_text()
    assert "Traceback" not in shown
    assert "WARNING" not in shown
    resumed = simulate([f"resume={interrupted}", "runtime.name=local"])
    assert resumed.summary["rounds"] == 12
    assert [event.fields["round"] for event in resumed.events if event.kind == "round_finished"] == list(range(1, 13))


def wait_for_a_checkpoint(folder: Path, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not any(event.kind == "checkpoint_written" for event in events_in(folder)):
        assert running.poll() is None, "ended by itself"
        assert time.monotonic() < deadline, "no round ended"
        time.sleep(0.02)
