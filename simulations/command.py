"""The verbs `simulate` and `plan` of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fedslm.process import settle

SIMULATE_HELP = """Runs a whole federation on this machine.

usage: fedslm simulate [--json] [--quiet] [SETTING=VALUE ...]
       fedslm simulate resume=RUN_FOLDER [compare=true]

  --json    print only the summary, as JSON
  --quiet   print warnings and the result only
"""

PLAN_HELP = """Prints what a run would cost, per hospital, without running it.

usage: fedslm plan [--json] [SETTING=VALUE ...]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A verb's flags, and its settings."""

    wants_json: bool
    is_quiet: bool
    wants_help: bool
    overrides: tuple[str, ...]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Options:
        """Takes the flags out; whatever else there is goes to Hydra, which refuses what it does not know."""
        flags = {"--json", "--quiet", "-q", "--help", "-h"}
        return cls(
            wants_json="--json" in arguments,
            is_quiet="--quiet" in arguments or "-q" in arguments,
            wants_help="--help" in arguments or "-h" in arguments,
            overrides=tuple(argument for argument in arguments if argument not in flags),
        )


def simulate(arguments: list[str]) -> int:
    """`fedslm simulate`: 0 when done; every other end is an exception with its own exit code."""
    options = Options.parse(arguments)
    if options.wants_help:
        print(SIMULATE_HELP + _settings_help())
        return 0
    settle()
    from rich.console import Console

    from fedslm.reporting.terminal import choose_view
    from simulations.run import history
    from simulations.run import simulate as run_simulation

    console = Console(stderr=options.wants_json)
    past = history(options.overrides)
    view = None if options.wants_json else choose_view(console, quiet=options.is_quiet, history=past)
    result = run_simulation(options.overrides, view=view)
    if options.wants_json:
        print(json.dumps(result.summary, indent=2, sort_keys=True))
    else:
        _print_result(console, dict(result.summary))
    return 0


def plan(arguments: list[str]) -> int:
    """`fedslm plan`."""
    options = Options.parse(arguments)
    if options.wants_help:
        print(PLAN_HELP + _settings_help())
        return 0
    settle()
    from rich.console import Console

    from simulations.estimate import estimate, render

    found = estimate(options.overrides)
    if options.wants_json:
        print(json.dumps(found, indent=2, sort_keys=True))
    else:
        console = Console()
        # A pipe has no width; 80 columns would cut the table.
        (console if console.is_terminal else Console(width=120)).print(render(found))
    return 0


def _settings_help() -> str:
    from fedslm.config.compose import GROUPS, choices, config_dir

    groups = "\n".join(f"  {group}={'|'.join(choices(group))}" for group in GROUPS if choices(group))
    where = f"Every setting, with what it does: {config_dir()}"
    return f"\nChoices:\n{groups}\n\n{where}\nFor example: fedslm simulate rounds=10 privacy.epsilon=3\n"


def _print_result(console: object, summary: dict[str, object]) -> None:
    from rich.console import Console

    from fedslm.reporting.closing import closing_lines, comparison_table

    target = console if isinstance(console, Console) else Console()
    comparison = summary.get("comparison")
    if isinstance(comparison, dict):
        target.print()
        target.print(comparison_table(comparison))
    target.print()
    for line in closing_lines(summary):
        target.print(line, highlight=False, markup=False, soft_wrap=True)
