"""The verb `bench` of the command line."""

from __future__ import annotations

import argparse
import json
from typing import Any, NoReturn

from fedslm.errors import ConfigError
from fedslm.process import settle

GOALS = (
    "Goals at 16 hospitals, 10 M parameters, 5 dropouts and an AES yardstick of 2 GB/s: 2 s a hospital, 5 s the server."
)


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag as every other command does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"fedslm bench: {message}; see fedslm bench secagg --help.")


def bench(arguments: list[str]) -> int:
    """`fedslm bench secagg`: measures what secure aggregation costs on this machine."""
    parser = _Parser(prog="fedslm bench", description="Measures this machine with the product's own code.")
    subjects = parser.add_subparsers(dest="subject", required=True, parser_class=_Parser)
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
    options = parser.parse_args(arguments)
    settle()
    from simulations.benchmarks.secagg import Load, measure

    load = Load(clients=options.clients, params=options.params, dropouts=options.dropouts, ring_bits=options.ring_bits)
    found = measure(load, with_flower=not options.skip_flower)
    print(json.dumps(found, indent=2, sort_keys=True) if options.json else _table(found))
    return 0


def _table(found: dict[str, Any]) -> str:
    flower = "not measured"
    if found["flower_secaggplus_s"] is not None:
        flower = f"{found['flower_secaggplus_s']:.2f} s, {found['ratio_to_flower']:.1f} times as long"
    rows = {
        "session": f"{found['clients']} hospitals, {found['params']:,} parameters, {found['dropouts']} drop out",
        "a hospital": f"{found['client_s']:.2f} s on average, {found['client_max_s']:.2f} s at most",
        "the coordinator": f"{found['server_s']:.2f} s, {found['server_peak_bytes'] / 1e6:,.0f} MB at most",
        "a hospital sends": f"{found['bytes_per_client'] / 1e6:,.2f} MB",
        "a hospital receives": f"{found['bytes_to_client'] / 1e6:,.2f} MB",
        "all together": f"{found['total_s']:.2f} CPU seconds",
        "Flower's SecAgg+": flower,
        "yardstick": f"AES-256-CTR {found['aes_gb_s']:.2f} GB/s",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
