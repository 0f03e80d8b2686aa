"""The bundle is a constant: its hash stands on allow-lists."""

from __future__ import annotations

import importlib
import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedslm.encoding import sha256_hex
from fedslm.flower.bundle import PYPROJECT, RUN_FOLDER_KEY, bundle


def test_the_bundle_is_the_one_that_hospitals_have_listed() -> None:
    """If this has to change, so has every hospital's allow-list: say so in the release notes."""
    assert sha256_hex(bundle()) == "f1ba262f6dbe93b6d967e086ee907069d63977d89bef7e974bcb9f11202c9c16"


def test_the_bundle_carries_no_code_and_asks_for_no_package() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
    project = tomllib.loads(PYPROJECT.decode())
    assert project["project"]["dependencies"] == []
    assert project["tool"]["flwr"]["app"]["config"] == {RUN_FOLDER_KEY: ""}


@pytest.mark.parametrize(("side", "kind"), [("serverapp", ServerApp), ("clientapp", ClientApp)])
def test_the_bundle_names_the_installed_apps(side: str, kind: type) -> None:
    name = tomllib.loads(PYPROJECT.decode())["tool"]["flwr"]["app"]["components"][side]
    module, _, attribute = name.partition(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), kind)


def test_flower_takes_it(tmp_path: Path) -> None:
    installed = install_from_fab(bundle(), tmp_path, skip_prompt=True)
    assert [path.name for path in installed.iterdir()] == ["pyproject.toml"]
