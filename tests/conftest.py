"""Shared by all tests: quiet libraries, one thread, no network, and one folder with a toy model and toy rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Before anything imports torch or transformers; the processes that tests start inherit it.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
os.environ.update({"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"})

import pytest

from tests.toys import toy_overrides


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and `rows.jsonl`; read-only by convention."""
    folder = tmp_path_factory.mktemp("toys")
    toy_overrides(folder)
    return folder


@pytest.fixture
def settings(toys: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Makes the overrides of a toy run in `tmp_path / "run"`."""
    return lambda *more: toy_overrides(toys, f"run_folder={tmp_path / 'run'}", *more)


@pytest.fixture
def unprivate(settings: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The same without privacy: no noise to calibrate, so it starts in half the time."""
    return lambda *more: without_privacy(settings(*more))


def without_privacy(overrides: list[str]) -> list[str]:
    """Takes the settings of privacy=local out and privacy=none in."""
    return ["privacy=none", *(override for override in overrides if not override.startswith("privacy.epsilon"))]
