"""The third accountant agrees with the first, and where it does not come back, it is ended."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fedslm.privacy import prv
from fedslm.privacy.accounting import epsilon_spent, prv_epsilon
from fedslm.privacy.prv import run_prv
from tests.privacy.toys import build_mechanism


def test_it_agrees_with_the_loss_distribution() -> None:
    found = prv_epsilon(build_mechanism(), sessions=10, delta=1e-5, timeout_s=120.0)
    spent = epsilon_spent(build_mechanism(), sessions=10, delta=1e-5)
    assert found is not None
    assert spent - 1e-3 < found < spent + 0.02


def test_it_is_killed_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    popen = subprocess.Popen.__init__

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        popen(
            self,
            [sys.executable, "-c", "import signal, time; signal.signal(15, lambda *_: None); time.sleep(60)"],
            **kwargs,
        )
        started.append(self.pid)

    monkeypatch.setattr(subprocess.Popen, "__init__", spy)  # a process that hangs, and does not end when asked to
    before = time.monotonic()
    assert run_prv(sample_rate=0.5, noise_multiplier=0.05, steps=10, delta=1e-6, timeout_s=0.5) is None
    assert time.monotonic() - before < 10
    assert len(started) == 1
    assert not psutil.pid_exists(started[0])


def test_it_says_nothing_where_it_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(prv.sys, "executable", "/bin/false")
    with caplog.at_level("INFO"):
        assert run_prv(sample_rate=0.5, noise_multiplier=1.0, steps=10, delta=1e-6, timeout_s=10.0) is None
    assert "gave up" in caplog.text


@pytest.mark.parametrize(("printed", "found"), [("a warning\n1.25\n", 1.25), ("nan\n", None), ("inf\n", None)])
def test_only_a_finite_number_is_an_opinion(printed: str, found: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=printed))
    assert run_prv(sample_rate=0.5, noise_multiplier=1.0, steps=10, delta=1e-6, timeout_s=1.0) == found


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "steps"), [(0.05, 1000), (0.1, 100_000)])
def test_small_noise_neither_hangs_nor_fills_the_memory(sigma: float, steps: int) -> None:
    assert run_prv(sample_rate=0.5, noise_multiplier=sigma, steps=steps, delta=1e-6, timeout_s=60.0) is None
