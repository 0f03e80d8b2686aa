"""The command `fedslm`: a table of verbs. A verb's module is imported when the verb is called, not before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedslm import __version__
from fedslm.errors import ConfigError, FedSLMError

INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One word of the command line.

    Attributes:
      help: one line for `fedslm --help`.
      target: "module:function" taking the remaining arguments and returning an exit code.
    """

    help: str
    target: str

    def load(self) -> Callable[[list[str]], int]:
        """Imports the verb's module and returns its function."""
        module, _, function = self.target.partition(":")
        loaded: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
        return loaded


VERBS = {
    "simulate": Verb(help="run a whole federation on this machine", target="simulations.command:simulate"),
    "plan": Verb(help="print what a run would cost, without running it", target="simulations.command:plan"),
    "bench": Verb(
        help="measure what encryption and the ledger cost here", target="simulations.benchmarks.command:bench"
    ),
    "ledger": Verb(help="what was spent on your patients' privacy, and what is left", target="clients.command:ledger"),
    "audit": Verb(help="plan, verify and report what was spent", target="fedslm.reporting.audit.command:audit"),
    "identity": Verb(help="make and show the keys you sign with", target="fedslm.governance.command:identity"),
    "roster": Verb(help="sign and show who belongs to the consortium", target="fedslm.governance.command:roster"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
      0 done, 1 failed, 2 wrong usage, 3 budget exhausted, 4 too few hospitals, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt as interrupt:
        _say("interrupted", interrupt)
        return INTERRUPTED
    except FedSLMError as error:
        return _report(error, debug=debug)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"fedslm {__version__}")
        return 0
    if arguments[0] not in VERBS:
        raise ConfigError(f"There is no command '{arguments[0]}'; there are {', '.join(VERBS)} (see fedslm --help).")
    return VERBS[arguments[0]].load()(arguments[1:])


def _report(error: FedSLMError, *, debug: bool) -> int:
    if debug:
        raise error
    _say(str(error), error)
    return error.exit_code


def _say(sentence: str, error: BaseException) -> None:
    """Prints what happened and, from the error's notes, how to go on."""
    print("\n".join([f"fedslm: {sentence}", *getattr(error, "__notes__", [])]), file=sys.stderr)


def usage() -> str:
    """The text of `fedslm --help`."""
    verbs = "\n".join(f"  {name:<10} {verb.help}" for name, verb in VERBS.items())
    return (
        "Hospitals tune a small language model together; their notes stay at home.\n\n"
        f"usage: fedslm COMMAND [--help] [--debug] [SETTING=VALUE ...]\n\n{verbs}\n\n"
        "  --version  print the version\n"
        "  --debug    show the traceback of an error\n\n"
        "Start with: fedslm simulate"
    )
