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
from simulations.benchmarks import demo, heart, page, plots, sessions

LIBRARIES = ("torch", "transformers", "peft", "opacus", "dp-accounting", "flwr", "cryptography")


def main(arguments: list[str] | None = None) -> None:
    """Runs the chosen subjects and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("timing", "overhead", "demo", "control", "heart", "secagg", "masking"),
        help="subjects to measure",
    )
    parser.add_argument("--heart", type=Path, help="heart.jsonl, made by simulations.uci_heart")
    options = parser.parse_args(arguments)
    subjects: dict[str, Callable[[], Any]] = {
        "timing": lambda: {**demo.timing(), **demo.startup(), "yardstick": demo.yardstick()},
        "overhead": demo.outside_gradients,
        "demo": demo.comparison,
        "control": demo.control,
        "heart": lambda: heart.measure(options.heart),
        "secagg": sessions.measure,
        "masking": sessions.masking,
    }
    settle()
    found = _earlier(options.out)
    for name in options.only or (subject for subject in subjects if subject != "heart" or options.heart):
        found[name] = {"measured": _stamp(), "result": subjects[name]()}
        _write(options.out, found)


def _earlier(out: Path) -> dict[str, Any]:
    raw = out.with_suffix(".json")
    return dict(json.loads(raw.read_text())) if raw.is_file() else {}


def _write(out: Path, found: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    out.write_text(page.render(found))
    if "secagg" in found:
        plots.draw_secagg(found["secagg"]["result"]["by_clients"], out.with_name("secagg.svg"))


def _stamp() -> dict[str, str]:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    python = f"Python {platform.python_version()}"
    return {"date": f"{datetime.date.today():%Y-%m-%d}", "versions": f"{python}, {libraries}"}


if __name__ == "__main__":
    main()
