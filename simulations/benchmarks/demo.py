"""The demo, measured: a control, time, memory, and where a round's time goes. See `utility` for what federating is worth."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedslm.reporting.events import read_events

SEED = 1


def control(seed: int = SEED) -> dict[str, Any]:
    """Trains on answers dealt out anew: a score above the majority rate would mean that the test is leaking."""
    summary = run(
        f"seed={seed}", "data.shuffle_labels=true", "evaluation.max_examples=100000", "evaluation.every_rounds=0"
    )
    keys = ("majority", "majority_own", "seconds")
    return {"accuracy": summary["last_accuracy"], **{key: summary[key] for key in keys}}


def timing(seed: int = SEED) -> dict[str, Any]:
    """Runs the demo without the comparison: seconds and memory."""
    summary = run(f"seed={seed}")
    return {key: summary[key] for key in ("seconds", "peak_rss_bytes", "rounds")}


def yardstick() -> dict[str, float]:
    """What this machine does in the same minute: a matrix product and a plain, non-private training step."""
    code = (
        "import json, time\n"
        "from fedslm.process import settle\n"
        "settle()\n"
        "import torch\n"
        "from fedslm.config.compose import compose\n"
        "from fedslm.models.loading import load_base\n"
        "a = torch.randn(512, 512); [a @ a for _ in range(20)]; t = time.perf_counter()\n"
        "for _ in range(100): a @ a\n"
        "gflops = 100 * 2 * 512**3 / (time.perf_counter() - t) / 1e9\n"
        "m = load_base(compose([]).model).model.requires_grad_(True)\n"
        "x = torch.randint(3, 100, (64, 32))\n"
        "def step():\n"
        "    m(input_ids=x, labels=x).loss.backward(); m.zero_grad()\n"
        "step(); t = time.perf_counter(); [step() for _ in range(10)]\n"
        "print(json.dumps({'matmul_gflops': gflops, 'plain_step_s': (time.perf_counter() - t) / 10}))\n"
    )
    return dict(json.loads(_output(sys.executable, "-c", code).splitlines()[-1]))


def outside_gradients(seed: int = SEED, rounds: int = 20) -> dict[str, float]:
    """Share of the rounds' wall time that is not forward, backward or the optimizer.

    Hospitals take turns for it, so that times add up; scoring is not part of a round. The first round reads the records.
    """
    code = (
        "import json, sys, time\n"
        "from fedslm.process import settle\n"
        "settle()\n"
        "import clients.train as train\n"
        "spent = [0.0]\n"
        "def timed(function):\n"
        "    def wrapper(*args, **kwargs):\n"
        "        started = time.perf_counter()\n"
        "        try:\n"
        "            return function(*args, **kwargs)\n"
        "        finally:\n"
        "            spent[0] += time.perf_counter() - started\n"
        "    return wrapper\n"
        "train.private_gradient = timed(train.private_gradient)\n"
        "import fedslm\n"
        f"overrides = ['seed={seed}', 'rounds={rounds}', 'evaluation.every_rounds=0', 'runtime.parallel=1']\n"
        "overrides.append('run_folder=' + sys.argv[1])\n"
        "result = fedslm.simulate(overrides)\n"
        "total = sum(e.fields['seconds'] for e in result.events if e.kind == 'round_finished')\n"
        "print(json.dumps({'rounds_s': total, 'gradients_s': spent[0], 'outside_share': 1 - spent[0] / total}))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        return dict(json.loads(_output(sys.executable, "-c", code, f"{folder}/run").splitlines()[-1]))


def startup() -> dict[str, float]:
    """Seconds of `fedslm --help`, the best of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        _output(sys.executable, "-m", "fedslm", "--help")
        times.append(time.perf_counter() - started)
    return {"help_s": min(times)}


def run(*overrides: str) -> dict[str, Any]:
    """Runs `fedslm simulate --json` in a process and a folder of its own.

    Returns:
      The summary, with the last accuracy scored and the majority rate of the pooled test set where it was not compared.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run"
        summary = simulate_quietly(*overrides, f"run_folder={target}")
        scored = [event.fields["accuracy"] for event in read_events(target / "events.jsonl") if event.kind == "scored"]
        return {**summary, "last_accuracy": scored[-1] if scored else None}


def simulate_quietly(*overrides: str) -> dict[str, Any]:
    """The summary of `fedslm simulate --json` in a process of its own."""
    return dict(json.loads(_output(sys.executable, "-m", "fedslm", "simulate", "--json", *overrides)))


def _output(*command: str) -> str:
    """Runs a command and returns what it printed; its errors go to the terminal."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
