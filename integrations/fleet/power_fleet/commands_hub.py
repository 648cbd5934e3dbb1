"""`power-fleet hub`: everything that a small fleet needs, on one machine."""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from power_fleet.nats_server import DEFAULT_PORT, LOOPBACK
from power_fleet.options import (
    HUB_GROUP,
    add_log_option,
    parse_positive,
    run_until_signal,
)
from power_manager import CommandParser, parse_count

if TYPE_CHECKING:
    from power_fleet.discovery import Addresses


def add_commands(parser: CommandParser) -> None:
    """Add `hub`."""
    command = parser.add_command(
        "hub",
        _hub,
        "run NATS, the engine, a sink and the closing of hours in one",
        examples=[
            "--data fleet",
            "--data /var/lib/power-fleet --listen 0.0.0.0 --cert hub.pem --key hub-key.pem",
        ],
        group=HUB_GROUP,
    )
    command.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="where everything is kept"
    )
    command.add_argument(
        "--nats-port",
        type=parse_port,
        default=DEFAULT_PORT,
        metavar="PORT",
        help=f"where devices send to; 0: any free one (default: {DEFAULT_PORT})",
    )
    command.add_argument(
        "--listen",
        type=parse_address,
        default=LOOPBACK,
        metavar="ADDRESS",
        help="where devices reach it: 0.0.0.0 for all networks (default: this machine alone)",
    )
    command.add_argument(
        "--cert", type=Path, metavar="FILE", help="the certificate of that address, PEM"
    )
    command.add_argument("--key", type=Path, metavar="FILE", help="the certificate's key, PEM")
    command.add_argument(
        "--engine-port",
        type=parse_port,
        default=0,
        metavar="PORT",
        help="where the engine answers on this machine (default: any free one)",
    )
    command.add_argument(
        "--max-bytes",
        type=parse_positive,
        default=None,
        metavar="N",
        help="that may wait in the stream; beyond it what is new is refused (default: 1 GiB)",
    )
    command.add_argument(
        "--memory",
        type=parse_positive,
        default=0,
        metavar="N",
        help="bytes that the engine may take (default: half of the machine's)",
    )
    add_log_option(command)


def parse_address(text: str) -> str:
    """Text as an IP address to listen at, for argparse."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        expected = "expected an address such as 127.0.0.1, 0.0.0.0 or ::"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}") from None


def parse_port(text: str) -> int:
    """Text as a port, for argparse: a whole number up to 65535; 0 stands for any free one."""
    try:
        port = parse_count(text)
    except argparse.ArgumentTypeError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return port


def _hub(options: argparse.Namespace) -> int:
    from power_fleet.hub import STREAM_BYTES, HubOptions, run

    told = HubOptions(
        options.data,
        options.nats_port,
        options.listen,
        options.cert,
        options.key,
        options.engine_port,
        options.max_bytes or STREAM_BYTES,
        options.memory,
    )
    return run_until_signal(run(told, _say_ready))


def _say_ready(addresses: Addresses) -> None:
    print(f"ready {addresses.nats} {addresses.service}".rstrip(), flush=True)
