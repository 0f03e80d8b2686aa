"""The same apps, masked, on a real SuperLink with three SuperNodes, so that no habit of the in-process grid hardens."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from fedslm.flower.bundle import RUN_FOLDER_KEY, bundle
from fedslm.flower.compat import run_status, submit_run
from fedslm.reporting.events import Event, read_events
from simulations.run import prepare, simulate, write_homes
from tests.toys import toy_overrides

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DEADLINE_S = 480.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Network:
    """A SuperLink with its SuperNodes, and the folder their logs go to."""

    address: str
    logs: Path

    def submit(self, folder: Path) -> int:
        """Submits a prepared run and returns Flower's number for it."""
        return submit_run(self.address, bundle(), {RUN_FOLDER_KEY: str(folder)})

    def wait_for(self, run_id: int) -> None:
        """Waits for the end of a run, which must be a good one."""
        deadline = time.monotonic() + DEADLINE_S
        while not (status := run_status(self.address, run_id)).startswith("finished"):
            assert time.monotonic() < deadline, f"still {status}"
            time.sleep(0.5)
        assert status == "finished:completed"

    def text(self) -> str:
        """Everything that all processes wrote."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(self.logs.iterdir()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], *, log: Path, home: Path) -> Iterator[None]:
    """A process that is ended with the block, whatever happens in it, and whatever it started with it."""
    environment = {**os.environ, **QUIET, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "FLWR_HOME": str(home)}
    with log.open("wb") as out:
        started = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=home)
        try:
            yield
        finally:
            end(started)


def end(root: psutil.Popen) -> None:
    """Asks a process to stop, then kills what is left of it and of its descendants (Flower detaches some)."""
    family = [root]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += root.children(recursive=True)
        root.terminate()
    psutil.wait_procs([root], timeout=3)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            for survivor in (*member.children(recursive=True), member):
                survivor.kill()
    root.wait(10)


@contextlib.contextmanager
def network(folder: Path, node_configs: list[dict[str, str]]) -> Iterator[Network]:
    """One SuperLink and a SuperNode for each configuration, all on loopback; shows their logs if the block fails."""
    port = free_port()
    running = Network(address=f"127.0.0.1:{port}", logs=folder / "logs")
    running.logs.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        try:
            for name, command in commands(running.address, node_configs).items():
                home = folder / "homes" / name
                home.mkdir(parents=True)
                stack.enter_context(process(command, log=running.logs / f"{name}.log", home=home))
                if name == "superlink":
                    wait_until_open(port)
            yield running
        except BaseException:
            print(running.text())
            raise


def commands(address: str, node_configs: list[dict[str, str]]) -> dict[str, list[str]]:
    """The command lines, as an operator would type them, by name; the SuperLink's first."""
    host, port = address.split(":")
    link = [str(BIN / "flower-superlink"), "--insecure", "--host", host, "--port", port]
    lines = {"superlink": [*link, "--disable-runtime-dependency-installation"]}
    for number, config in enumerate(node_configs):
        named = " ".join(f'{key}="{value}"' for key, value in config.items())
        node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", address, "--port", str(free_port())]
        lines[f"supernode-{number}"] = [*node, "--node-config", named]
    return lines


def wait_until_open(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("The SuperLink did not open its port.")


def fields(events: list[Event], kind: str, name: str) -> list[object]:
    return [event.fields[name] for event in events if event.kind == kind]


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_deployment_gives_the_adapter_of_the_simulation(tmp_path: Path) -> None:
    deployed, local = tmp_path / "deployed", tmp_path / "local"
    with prepare(toy_overrides(tmp_path, "rounds=2", "evaluation.every_rounds=0", f"run_folder={deployed}")) as job:
        assert job.plan.masked
        nodes, names = write_homes(job), job.plan.names
    shutil.copytree(deployed, local)
    with network(tmp_path, nodes) as running:
        run_id = running.submit(deployed)
        simulated = simulate([f"resume={local}"])  # meanwhile
        running.wait_for(run_id)
    events = list(read_events(deployed / "events.jsonl"))
    assert fields(events, "hospital_dropped", "hospital") == []
    assert sorted(fields(events, "hospital_joined", "hospital")) == sorted(names)
    assert fields(events, "round_finished", "survivors") == [names, names]
    assert fields(events, "session_started", "session") == [1, 2]
    assert sorted(fields(events, "hospital_masked", "hospital")) == sorted([*names, *names])
    assert fields(events, "checkpoint_written", "round") == [1, 2]
    assert events[-1].kind == "run_finished"
    expected = load_file(simulated.adapter / "adapter_model.safetensors")
    found = load_file(deployed / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
