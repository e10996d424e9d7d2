"""The command line of ``scripts/emulate``."""

from __future__ import annotations

import argparse
import sys

from autopar.core.errors import AutoparError, InputError
from autopar.emulation.layout import Layout, parse_quotas, parse_rates
from autopar.emulation.network import check_able, down, up
from autopar.emulation.running import run_on


def main(arguments: list[str]) -> int:
    """Run ``up``, ``exec`` or ``down``; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        check_able()
        status: int = options.action(options)
    except AutoparError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/emulate",
        description="Emulated hosts on this machine: shaped links, CPU quotas.",
    )
    verbs = parser.add_subparsers(required=True, metavar="up|exec|down")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default="ap", help="begins the names of all parts")
    start = verbs.add_parser("up", parents=[named], help="make the network")
    start.add_argument("--hosts", type=int, default=2)
    start.add_argument(
        "--rate", help="of each link: 50mbit, or 50mbit,1gbit; not shaped if absent"
    )
    start.add_argument("--quota", help="cores of each host: 0.5, or 0.5,1; not limited if absent")
    start.add_argument("--subnet", default="10.77.0", help="first three numbers of the addresses")
    start.set_defaults(action=_up)
    execute = verbs.add_parser(
        "exec",
        parents=[named],
        help="run a command on a host, or on all at once",
        description="{host}, {hosts} and {endpoint} in the command are filled in for each host.",
    )
    execute.add_argument("host", help="number of a host, or all")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    execute.set_defaults(action=_exec)
    stop = verbs.add_parser("down", parents=[named], help="remove the network")
    stop.set_defaults(action=_down)
    return parser


def _up(options: argparse.Namespace) -> int:
    if options.hosts < 1:
        raise InputError(f"{options.hosts} hosts", hint="use --hosts 2")
    layout = Layout(
        name=options.name,
        subnet=options.subnet,
        rates_bit_per_s=parse_rates(options.rate, options.hosts),
        quotas_cores=parse_quotas(options.quota, options.hosts),
    )
    up(layout)
    for number in range(layout.hosts):
        rate, quota = layout.rates_bit_per_s[number], layout.quotas_cores[number]
        link = f"{rate / 1e6:g} Mbit/s" if rate else "not shaped"
        share = f"{quota:g} cores" if quota else "all cores"
        name, address = layout.host(number), layout.address(number)
        sys.stdout.write(f"{name}  {address}  link {link}, {share}\n")
    return 0


def _exec(options: argparse.Namespace) -> int:
    layout = Layout.load(options.name)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise InputError("no command to run", hint="scripts/emulate exec all -- hostname")
    if options.host == "all":
        return run_on(layout, range(layout.hosts), words)
    if not options.host.isdigit() or int(options.host) >= layout.hosts:
        raise InputError(f"no host '{options.host}'", hint=f"use all, or 0 to {layout.hosts - 1}")
    return run_on(layout, [int(options.host)], words)


def _down(options: argparse.Namespace) -> int:
    down(Layout.load(options.name))
    return 0
