"""`power-fleet hub`: everything that a small fleet needs, on one machine."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from power_fleet.nats_server import DEFAULT_PORT, LOOPBACK
from power_fleet.options import (
    HUB_GROUP,
    add_log_option,
    add_metrics_option,
    add_nats_options,
    nats_of,
    parse_positive,
    run_until_signal,
)
from power_fleet.stream import Refused
from power_manager import CommandParser, parse_count, print_error

if TYPE_CHECKING:
    from power_fleet.discovery import Addresses

DEFAULT_SERVICE_PORT = 8080
LEAST_MEMORY = (
    256 * 2**20
)  # bytes: with less than that an engine does not even start, or answers nothing
SERVICE_PACKAGES = ("power_service", "fastapi", "uvicorn", "pydantic_settings")


def add_commands(parser: CommandParser) -> None:
    """Add `hub` and `demo`."""
    _add_hub(parser)
    command = parser.add_command(
        "demo",
        _demo,
        "send a made-up fleet, to have something to look at",
        examples=["", "--devices 1000"],
        group=HUB_GROUP,
    )
    command.add_argument(
        "--devices",
        type=parse_positive,
        default=20,
        metavar="N",
        help="how many (default: 20)",
    )
    command.add_argument("--once", action="store_true", help="end when their last day is sent")
    add_nats_options(command)


def _add_hub(parser: CommandParser) -> None:
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
        "--port",
        type=parse_port,
        metavar="PORT",
        help="of the pages; 0: any free one (default: 8080, where the extra `service` is installed)",
    )
    command.add_argument("--no-service", action="store_true", help="without the pages")
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
        type=parse_memory,
        default=0,
        metavar="N",
        help="bytes that the engine may take (default: half of the machine's)",
    )
    add_metrics_option(command)
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
        _service_port(options),
        options.max_bytes or STREAM_BYTES,
        options.memory,
        options.metrics_file,
    )
    return run_until_signal(run(told, _say_ready))


def parse_memory(text: str) -> int:
    """Text as bytes of memory that an engine can do with, for argparse."""
    try:
        memory = parse_count(text)
    except argparse.ArgumentTypeError:
        memory = 0
    if memory < LEAST_MEMORY:
        raise argparse.ArgumentTypeError(f"expected bytes, at least {LEAST_MEMORY}, got {text!r}")
    return memory


def _service_port(options: argparse.Namespace) -> int | None:
    """The port of the pages; None without them."""
    if options.no_service and options.port is not None:
        raise Refused("--port and --no-service: give one of them")
    if options.no_service:
        return None
    missing = [name for name in SERVICE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and options.port is not None:
        raise Refused(f"--port: {missing[0]} is not installed: pip install '.[hub,service]'")
    if missing:
        print_error("power-fleet: without pages: pip install '.[hub,service]' brings them")
        return None
    return DEFAULT_SERVICE_PORT if options.port is None else int(options.port)


def _demo(options: argparse.Namespace) -> int:
    from power_fleet.demo import make_sites, run

    to = nats_of(options)
    with tempfile.TemporaryDirectory(prefix="power-fleet-demo-") as directory:
        print_error(f"making a day of {options.devices} devices in {directory}")
        sites = make_sites(Path(directory), options.devices)
        print_error(
            "sending it" if options.once else "sending it, and what they measure from now on"
        )
        try:
            return run_until_signal(run(sites, to, options.once))
        finally:
            for site in sites:
                site.pm.close()


def _say_ready(addresses: Addresses) -> None:
    print(f"ready {addresses.nats} {addresses.service}".rstrip(), flush=True)
