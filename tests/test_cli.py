"""The command line: verbs, exit codes, one sentence on stderr, and a door that opens at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedslm
from fedslm import errors
from fedslm.cli import VERBS, main

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "flwr", "peft", "opacus", "hydra", "scipy", "numpy", "pydantic", "rich")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_verb(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(verb in out and entry.help in out for verb, entry in VERBS.items())


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_the_packages(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"fedslm {fedslm.__version__}\n"


def test_no_command_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: fedslm COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["simulat", "--rounds", ""])
def test_an_unknown_command_names_those_there_are(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fedslm: There is no command '{verb}'; there are simulate, plan")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["simulate", "plan"])
def test_a_verbs_help_lists_the_choices(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: fedslm {verb}" in out
    assert "privacy=local|none" in out
    assert "strategy=fedadagrad|fedadam|fedavg|fedavgm|fedprox|fedyogi" in out


@pytest.mark.parametrize("verb", ["simulate", "plan"])
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "rounds=0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "fedslm: rounds=0 is not allowed: input should be greater than or equal to 1.\n"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(errors.ConfigError, match="rounds=0"):
        main(["simulate", "--debug", "rounds=0"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RunError, 1),
        (errors.DataError, 1),
        (errors.ModelError, 1),
        (errors.ConfigError, 2),
        (errors.PrivacyError, 2),
        (errors.BudgetExceededError, 3),
        (errors.TooFewHospitalsError, 4),
        (KeyboardInterrupt, 130),
    ],
)
def test_an_error_ends_the_command_with_its_code(
    error: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("What is wrong.")

    monkeypatch.setattr("simulations.estimate.estimate", fail)
    assert main(["plan"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "nterrupted" in err if code == 130 else err == "fedslm: What is wrong.\n"


def test_the_door_imports_nothing_heavy() -> None:
    listing = f"print(sorted({set(HEAVY)} & set(sys.modules)))"
    for statement in ("import fedslm", "from fedslm.cli import main; main(['--help'])"):
        output = run("-c", f"import sys; {statement}; {listing}")
        assert output.stdout.splitlines()[-1] == "[]", output.stderr


def test_a_module_run_is_the_command() -> None:
    assert run("-m", "fedslm", "--version").stdout == f"fedslm {fedslm.__version__}\n"
    wrong = run("-m", "fedslm", "nonsense")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_the_package_offers_what_it_says() -> None:
    assert sorted(fedslm.__all__) == ["__version__", "simulate"]
    assert all(hasattr(fedslm, name) for name in fedslm.__all__)
