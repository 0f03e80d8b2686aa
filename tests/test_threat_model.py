"""Every line of the threat model names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "threat-model.md"
NAMED = re.compile(r"`([a-z_/]+\.py)::(test_\w+)`")


def names_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists() -> None:
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 30
    assert [f"{file}::{test}" for file, test in named if test not in names_in(file)] == []


def test_every_line_that_claims_something_names_a_test() -> None:
    claims = PAGE.read_text().split("## What holds")[1].split("## What does not hold")[0]
    rows = [row for row in claims.splitlines() if row.startswith("| ") and not row.startswith(("| attempt", "| fault"))]
    assert [row for row in rows if not NAMED.search(row)] == []
