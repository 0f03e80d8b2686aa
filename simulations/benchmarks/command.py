"""The verb `bench` of the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, NoReturn

from fedslm.errors import ConfigError
from fedslm.process import settle

GOALS = (
    "Goals at 16 hospitals, 10 M parameters, 5 dropouts and an AES yardstick of 2 GB/s: 2 s a hospital, 5 s the server."
)
LEDGER_GOALS = (
    "Goals: 1,000 sessions verified in 2 s; a booking in 0.5 s, SQLite's part in 20 ms; 1,000 rounds composed in 5 s, one "
    "more in 0.3 s."
)
Measured = tuple[dict[str, Any], dict[str, str]]
"""What was measured, for programs and for people."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag as every other command does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help.")


def bench(arguments: list[str]) -> int:
    """`fedslm bench`: measures what secure aggregation and the ledger cost on this machine."""
    parser = _Parser(prog="fedslm bench", description="Measures this machine with the product's own code.")
    subjects = parser.add_subparsers(dest="subject", required=True, parser_class=_Parser)
    _add_secagg(subjects)
    _add_ledger(subjects)
    options = parser.parse_args(arguments)
    settle()
    found, table = SUBJECTS[options.subject](options)
    print(json.dumps(found, indent=2, sort_keys=True) if options.json else _aligned(table))
    return 0


def _add_secagg(subjects: Any) -> None:
    secagg = subjects.add_parser(
        "secagg", help="one session of secure aggregation", description=GOALS, allow_abbrev=False
    )
    secagg.add_argument("--clients", type=int, default=16, help="hospitals, 3 to 255")
    secagg.add_argument("--params", type=int, default=1_000_000, help="numbers in the update")
    secagg.add_argument("--dropouts", type=int, default=0, help="hospitals that leave after sharing")
    secagg.add_argument("--ring-bits", type=int, default=32, help="bits of a number on the wire, 16 to 32")
    secagg.add_argument(
        "--skip-flower", action="store_true", help="leave out Flower's SecAgg+ (slow with many hospitals)"
    )
    secagg.add_argument("--json", action="store_true", help="print one JSON object")


def _add_ledger(subjects: Any) -> None:
    ledger = subjects.add_parser(
        "ledger", help="verifying, booking and composing", description=LEDGER_GOALS, allow_abbrev=False
    )
    ledger.add_argument("--sessions", type=int, default=1_000, help="sessions in the ledger")
    ledger.add_argument("--json", action="store_true", help="print one JSON object")


def _secagg(options: argparse.Namespace) -> Measured:
    from simulations.benchmarks.secagg import Load, measure

    load = Load(clients=options.clients, params=options.params, dropouts=options.dropouts, ring_bits=options.ring_bits)
    found = measure(load, with_flower=not options.skip_flower)
    return found, _secagg_rows(found)


def _ledger(options: argparse.Namespace) -> Measured:
    from simulations.benchmarks.ledger import measure

    found = measure(options.sessions)
    return found, {
        "ledger": f"{found['sessions']:,} sessions, {found['export_bytes'] / 1e6:.1f} MB exported",
        "verify": f"{found['verify_s']:.2f} s",
        "a booking": f"{1000 * found['booking_s']:.0f} ms, of which SQLite {1000 * found['sqlite_s']:.1f} ms",
        "compose": f"{found['compose_s']:.2f} s for 1,000 rounds of 10 kinds, {found['one_more_s']:.3f} s for one more",
        "yardstick": f"a write to the disk {1000 * found['fsync_s']:.2f} ms, AES-256-CTR {found['aes_gb_s']:.2f} GB/s",
    }


SUBJECTS: dict[str, Callable[[argparse.Namespace], Measured]] = {"secagg": _secagg, "ledger": _ledger}


def _secagg_rows(found: dict[str, Any]) -> dict[str, str]:
    flower = "not measured"
    if found["flower_secaggplus_s"] is not None:
        flower = f"{found['flower_secaggplus_s']:.2f} s, {found['ratio_to_flower']:.1f} times as long"
    return {
        "session": f"{found['clients']} hospitals, {found['params']:,} parameters, {found['dropouts']} drop out",
        "a hospital": f"{found['client_s']:.2f} s on average, {found['client_max_s']:.2f} s at most",
        "the coordinator": f"{found['server_s']:.2f} s, {found['server_peak_bytes'] / 1e6:,.0f} MB at most",
        "a hospital sends": f"{found['bytes_per_client'] / 1e6:,.2f} MB",
        "a hospital receives": f"{found['bytes_to_client'] / 1e6:,.2f} MB",
        "all together": f"{found['total_s']:.2f} CPU seconds",
        "Flower's SecAgg+": flower,
        "yardstick": f"AES-256-CTR {found['aes_gb_s']:.2f} GB/s",
    }


def _aligned(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
