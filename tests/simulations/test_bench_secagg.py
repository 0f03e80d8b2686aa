"""`fedslm bench secagg`: what it measures, in which keys, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedslm.cli import main
from fedslm.errors import ConfigError
from simulations.benchmarks import page, plots, secaggplus
from simulations.benchmarks.secagg import Load

KEYS = {
    "client_s",
    "server_s",
    "bytes_per_client",
    "server_peak_bytes",
    "flower_secaggplus_s",
    "ratio_to_flower",
    "aes_gb_s",
}


def measured(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedslm", "bench", "secagg", "--json", *arguments]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return measured("--clients", "5", "--params", "1000000", "--dropouts", "1")


def test_it_has_stable_keys_and_measures_flower_in_the_same_run(small: dict[str, Any]) -> None:
    assert set(small) >= KEYS
    assert all(small[key] > 0 for key in KEYS)
    ours = small["clients"] * small["client_s"] + small["server_s"]
    assert small["ratio_to_flower"] == pytest.approx(small["flower_secaggplus_s"] / ours)


def test_a_hospital_sends_its_vector_and_little_more(small: dict[str, Any]) -> None:
    vector = small["params"] * 4
    assert vector < small["bytes_per_client"] < 1.05 * vector


def test_the_coordinator_holds_three_vectors_at_most(small: dict[str, Any]) -> None:
    vector = small["params"] * 4
    assert 2 * vector <= small["server_peak_bytes"] <= 3 * vector


def test_fewer_ring_bits_send_less(small: dict[str, Any]) -> None:
    packed = measured("--clients", "3", "--params", "1000000", "--ring-bits", "20", "--skip-flower")
    assert packed["bytes_per_client"] < 0.7 * small["bytes_per_client"]
    assert packed["flower_secaggplus_s"] is None
    assert packed["ratio_to_flower"] is None


def test_a_person_reads_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "secagg", "--clients", "3", "--params", "1000", "--skip-flower"]) == 0
    shown = capsys.readouterr().out
    assert "3 hospitals, 1,000 parameters, 0 drop out" in shown
    assert "not measured" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--clients", "2"], "--clients 2; 3 to 255"),
        (["--clients", "256"], "--clients 256; 3 to 255"),
        (["--clients", "5", "--dropouts", "2"], "--dropouts 2; a session of 5 hospitals survives up to 1"),
        (["--dropouts", "-1"], "--dropouts -1"),
        (["--params", "0"], "--params 0"),
        (["--params", "many"], "--params"),
        (["--ring-bits", "8"], "--ring-bits 8; 16 to 32"),
        (["--hospitals", "5"], "--hospitals"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "secagg", *arguments]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert len(shown.strip().splitlines()) == 1


def test_a_subject_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "subject" in capsys.readouterr().err


def test_no_more_dropouts_than_a_session_survives() -> None:
    assert Load(clients=16, params=1, dropouts=5).bounds.dropouts == 5
    with pytest.raises(ConfigError):
        Load(clients=16, params=1, dropouts=6)


def test_flower_is_only_compared_with_when_it_gives_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secaggplus, "TOLERANCE", 1e-9)
    with pytest.raises(Exception, match="did not give back the mean"):
        secaggplus.measure(clients=3, params=100, dropouts=0, threshold=2)


def test_the_page_shows_the_figures_and_the_plot_is_drawn(small: dict[str, Any], tmp_path: Path) -> None:
    stamp = {"date": "2026-01-01", "versions": "none"}
    text = page.render({"secagg": {"measured": stamp, "result": {"goal": small, "by_clients": [small, small]}}})
    assert f"{small['ratio_to_flower']:.1f}" in text
    plots.draw_secagg([small, {**small, "clients": 16}], tmp_path / "secagg.svg")
    assert (tmp_path / "secagg.svg").read_text().rstrip().endswith("</svg>")
