"""The wheel holds everything a run needs: installed into an empty place, it works there without the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import without_privacy
from tests.toys import toy_overrides

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedslm", "clients", "server", "simulations")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout and unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(ROOT)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Run:
    """Runs Python on the installed packages, from an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    return run


def tracked(folder: str) -> set[str]:
    """The files below a folder of the checkout, without what Python leaves behind."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_the_command_starts(installed: Run) -> None:
    assert installed("-m", "fedslm", "--version").stdout.startswith("fedslm ")


def test_the_packages_are_the_installed_ones(installed: Run, site: Path) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    found = installed("-c", code).stdout.splitlines()
    assert found == [str(site / package / "__init__.py") for package in PACKAGES]


def test_the_settings_travel_in_the_package(installed: Run, site: Path) -> None:
    code = "from fedslm.config.compose import config_dir; print(config_dir())"
    assert installed("-c", code).stdout.strip() == str(site / "fedslm" / "conf")
    travelled = {str(path.relative_to(site / "fedslm")) for path in (site / "fedslm" / "conf").rglob("*.yaml")}
    assert travelled == {name for name in tracked("conf") if name.endswith(".yaml")}


def test_every_file_of_every_package_travels_and_no_test_does(site: Path) -> None:
    for package in PACKAGES:
        missing = {name for name in tracked(package) if not (site / name).is_file()}
        assert missing == set()
    tops = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops - {"bin"} == set(PACKAGES)


def test_the_embedded_model_travels(site: Path) -> None:
    tiny = {path.name for path in (site / "fedslm" / "models" / "tiny").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= tiny


def test_the_licence_travels(site: Path) -> None:
    assert list(site.glob("fedslm-*.dist-info/licenses/LICENSE"))


def test_a_federation_runs_from_an_empty_folder(installed: Run, toys: Path, tmp_path: Path) -> None:
    overrides = without_privacy(toy_overrides(toys, "rounds=1", f"run_folder={tmp_path / 'run'}"))
    done = installed("-m", "fedslm", "simulate", "--json", *overrides)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    assert "Loading weights" not in done.stderr
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_entry_point_is_the_command(site: Path) -> None:
    (entry,) = site.glob("fedslm-*.dist-info/entry_points.txt")
    assert "fedslm = fedslm.cli:main" in entry.read_text()
