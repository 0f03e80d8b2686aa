"""The house's rules, enforced: who may import whom, one owner per dependency, nothing heavy at the door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedslm", "clients", "server", "simulations")

# Lowest first. A module may import its own level's room and everything below, never above, never beside.
LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"fedslm.errors", "fedslm.encoding", "fedslm.files", "fedslm.process"}),
    frozenset({"fedslm.crypto", "fedslm.data", "fedslm.config.schema"}),
    frozenset({"fedslm.config", "fedslm.secagg", "fedslm.models", "fedslm.governance"}),
    frozenset({"fedslm.privacy", "fedslm.evaluation"}),
    frozenset({"fedslm.reporting", "fedslm.flower"}),
    frozenset({"clients", "server"}),
    frozenset({"simulations"}),
)
OWNERS = {
    "opacus": "fedslm/privacy/",
    "dp_accounting": "fedslm/privacy/",
    "cryptography": "fedslm/crypto/",
    "hydra": "fedslm/config/",
    "omegaconf": "fedslm/config/",
}
FORBIDDEN = {
    "server": (
        "clients",
        "fedslm.secagg.hospital",
        "fedslm.privacy.gradients",
        "fedslm.privacy.ledger",
        "fedslm.privacy.ledger_fold",
    ),
    "clients": ("server", "simulations", "fedslm.secagg.coordinator"),
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> tuple[int, str] | None:
    best: tuple[int, str] | None = None
    for level, names in enumerate(LEVELS):
        for name in names:
            if (module == name or module.startswith(name + ".")) and (best is None or len(name) > len(best[1])):
                best = (level, name)
    return best


def breaks_arrow(importer: str, imported: str) -> bool:
    here, there = room(importer), room(imported)
    if here is None or there is None or here[1] == there[1]:
        return False
    within_config = here[1].startswith("fedslm.config") and there[1].startswith("fedslm.config")
    # "errors, encoding" may use each other; models and governance stand beside each other without touching.
    return not within_config and not (here[0] == there[0] == 0) and there[0] >= here[0]


def test_every_module_has_a_room() -> None:
    outside = {"fedslm", "fedslm.cli", "fedslm.__main__"}
    assert [name for name, _ in modules() if room(name) is None and name not in outside] == []


def test_imports_point_downwards() -> None:
    broken = [
        f"{name} -> {target}" for name, path in modules() for target in imports(path) if breaks_arrow(name, target)
    ]
    allowed = {"fedslm -> simulations.run.simulate", "fedslm -> simulations.run.RunResult"}
    assert [arrow for arrow in broken if arrow not in allowed] == []


def test_the_arrow_rule_itself_can_fail() -> None:
    assert breaks_arrow("fedslm.data.example", "fedslm.privacy.mechanism")
    assert breaks_arrow("clients.train", "server.rounds")
    assert not breaks_arrow("clients.train", "fedslm.privacy.mechanism.Mechanism")


@pytest.mark.parametrize("side", sorted(FORBIDDEN))
def test_sides_never_meet(side: str) -> None:
    crossings = [
        f"{name} -> {target}"
        for name, path in modules()
        if name.split(".")[0] == side
        for target in imports(path)
        if any(target == forbidden or target.startswith(forbidden + ".") for forbidden in FORBIDDEN[side])
    ]
    assert crossings == []


def test_each_dependency_has_one_owner() -> None:
    strays = [
        f"{path.relative_to(ROOT)} imports {target}"
        for _, path in modules()
        for target in imports(path)
        for library, owner in OWNERS.items()
        if target.split(".")[0] == library and not str(path.relative_to(ROOT)).startswith(owner)
    ]
    assert strays == []


def test_private_flower_imports_live_in_compat() -> None:
    public = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")
    strays = [
        f"{path.relative_to(ROOT)} imports {target}"
        for name, path in modules()
        for target in imports(path)
        if target.split(".")[0] == "flwr" and not target.startswith(public) and name != "fedslm.flower.compat"
    ]
    assert strays == []


def test_nothing_unsafe_is_called() -> None:
    unsafe = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    strays = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(path)
        if target.split(".")[0] in unsafe
    ]
    assert strays == []
    assert [name for name, path in modules() if "torch.load(" in path.read_text()] == []


@pytest.mark.parametrize("statement", ["import fedslm", "import fedslm.cli", "from fedslm.governance.plan import Plan"])
def test_nothing_heavy_is_imported_at_the_door(statement: str) -> None:
    heavy = "{'torch', 'transformers', 'flwr', 'peft', 'opacus', 'hydra', 'scipy'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert output.stdout.strip() == "[]"


def test_public_functions_are_documented() -> None:
    bare = []
    for name, path in modules():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree) and path.read_text().strip():
            bare.append(name)
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{name}.{node.name}")
    assert bare == []


def test_no_function_is_long() -> None:
    long = []
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                documented = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0  # type: ignore[operator]
                if node.end_lineno - node.lineno + 1 - documented > 60:  # type: ignore[operator]
                    long.append(f"{name}.{node.name}")
    assert long == []
