"""Measures what `docs/results.md` states and writes it: `python -m simulations.benchmarks.run --out docs/results.md`.

Every figure is kept in `results.json` beside the page, and the page is drawn from that file alone; `--only` measures
some subjects anew and keeps the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedslm.process import settle
from simulations.benchmarks import demo, ledger, page, plots, sessions, utility

LIBRARIES = ("torch", "transformers", "peft", "opacus", "dp-accounting", "flwr", "cryptography")


def main(arguments: list[str] | None = None) -> None:
    """Runs the chosen subjects and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("timing", "overhead", "utility", "control", "secagg", "masking", "ledger"),
        help="subjects to measure",
    )
    parser.add_argument("--heart", type=Path, help="heart.jsonl, made by simulations.uci_heart")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the utility runs of an interrupted measurement"
    )
    options = parser.parse_args(arguments)
    found = _earlier(options.out)

    def keep(result: Any) -> None:
        found["utility"] = {"measured": _stamp(), "result": result}
        _write(options.out, found)

    known = found.get("utility", {}).get("result", {}) if options.resume else {}
    subjects: dict[str, Callable[[], Any]] = {
        "timing": lambda: {**demo.timing(), **demo.startup(), "yardstick": demo.yardstick()},
        "overhead": demo.outside_gradients,
        "utility": lambda: utility.measure(options.heart, known=known, keep=keep),
        "control": demo.control,
        "ledger": ledger.measure,
        "secagg": sessions.measure,
        "masking": sessions.masking,
    }
    settle()
    for name in options.only or subjects:
        found[name] = {"measured": _stamp(), "result": subjects[name]()}
        _write(options.out, found)


def _earlier(out: Path) -> dict[str, Any]:
    raw = out.with_suffix(".json")
    return dict(json.loads(raw.read_text())) if raw.is_file() else {}


def _write(out: Path, found: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    out.write_text(page.render(found))
    if "utility" in found:
        plots.draw_utility(found["utility"]["result"], out.with_name("utility.svg"))
    if "secagg" in found:
        plots.draw_secagg(found["secagg"]["result"]["by_clients"], out.with_name("secagg.svg"))


def _stamp() -> dict[str, str]:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    python = f"Python {platform.python_version()}"
    return {"date": f"{datetime.date.today():%Y-%m-%d}", "versions": f"{python}, {libraries}"}


if __name__ == "__main__":
    main()
