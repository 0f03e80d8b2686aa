"""Shared by the tests of reports: the loss of one step is computed once for all of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from fedslm.privacy import accounting


@pytest.fixture(scope="session", autouse=True)
def remembered_steps() -> Iterator[None]:
    """The accountant's figures for single steps follow from two numbers and take most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("step_loss", "step_divergence"):
            patch.setattr(accounting, name, functools.cache(getattr(accounting, name)))
        yield
