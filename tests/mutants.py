"""Faults that are put into the product's source for the length of a test, to see whether a check notices them."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import pytest

from fedslm.errors import FedSLMError

CAUGHT = (AssertionError, FedSLMError)
"""A check notices a fault; so does the product itself, where it refuses to go on."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of the product's source, and the check that has to notice it."""

    name: str
    function: FunctionType
    old: str
    new: str
    check: Callable[[], None]

    def __str__(self) -> str:
        return self.name


def mutate(patch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    """Gives the function, wherever it was imported to, the code of its changed source."""
    source = textwrap.dedent(inspect.getsource(mutant.function))
    assert source.count(mutant.old) == 1, (
        f"The source of {mutant.function.__qualname__} has changed; write the mutant anew."
    )
    changed: dict[str, Any] = {}
    exec(
        compile(source.replace(mutant.old, mutant.new), "<mutant>", "exec"), dict(mutant.function.__globals__), changed
    )
    patch.setattr(mutant.function, "__code__", changed[mutant.function.__name__].__code__)
