"""`power-fleet hub` and `demo`: everything that a small fleet needs, on one machine."""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.util
import ipaddress
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from power_fleet.discovery import LOOPBACK, NATS_PORT
from power_fleet.errors import WrongOptions
from power_fleet.limits import HUB_STREAM_BYTES
from power_fleet.options import (
    HUB_GROUP,
    OR_GIVE_UP,
    add_engine_option,
    add_max_bytes_option,
    add_metrics_option,
    add_nats_options,
    add_once_option,
    add_verbose_option,
    counted,
    engine_urls_of,
    nats_of,
    parse_port,
    parse_positive,
    run_until_signal,
)
from power_manager import CommandParser, confirm, not_installed, parse_count, print_error

if TYPE_CHECKING:
    from power_fleet.discovery import Addresses

SERVICE_PORT = 8080
DEMO_DEVICES = 20
LEAST_MEMORY = 256 * 2**20  # bytes: with less an engine does not start, or answers nothing
# In `hub --help`; the README has the same.
CERTIFICATE = r"""
A certificate for --cert and --key, of the address or name at which devices reach
the hub (IP:192.0.2.1 here; a name is DNS:hub.example.com), is made by
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
    -subj /CN=hub -addext subjectAltName=IP:192.0.2.1 -out hub.pem -keyout hub-key.pem"""
SERVICE_PACKAGES = ("power_service", "fastapi", "uvicorn", "pydantic_settings")


def add_commands(parser: CommandParser) -> None:
    """Add `hub` and `demo`."""
    _add_hub(parser)
    _add_demo(parser)


def _add_demo(parser: CommandParser) -> None:
    command = parser.add_command(
        "demo",
        _demo,
        "send a made-up fleet, to have something to look at",
        examples=["", "--devices 1000", "--remove"],
        group=HUB_GROUP,
    )
    command.add_argument(
        "--devices",
        type=parse_positive,
        metavar="N",
        help=f"how many (default: {DEMO_DEVICES})",
    )
    add_once_option(command, f"end when the day before now is sent, {OR_GIVE_UP}")
    command.add_argument(
        "--remove",
        action="store_true",
        help="delete all made-up devices from the fleet instead, with everything of them",
    )
    command.add_argument("--yes", action="store_true", help="do not ask")
    add_nats_options(command)
    add_engine_option(command)


def _add_hub(parser: CommandParser) -> None:
    command = parser.add_command(
        "hub",
        _hub,
        "run NATS, the engine, a sink and the closing of hours in one process",
        examples=[
            "--data fleet",
            "--data /var/lib/power-fleet --listen 0.0.0.0 --cert hub.pem --key hub-key.pem",
        ],
        group=HUB_GROUP,
    )
    command.description = f"{command.description}\n{CERTIFICATE}"
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="where everything is kept; made where it is missing",
    )
    _add_device_options(command)
    _add_local_options(command)
    add_max_bytes_option(command, HUB_STREAM_BYTES, "1 GiB")
    command.add_argument(
        "--memory",
        type=functools.partial(parse_count, at_least=LEAST_MEMORY),
        default=0,
        metavar="BYTES",
        help="that the engine may take, at least 256 MiB (default: half of the machine's)",
    )
    add_metrics_option(command)
    add_verbose_option(command)


def _add_device_options(command: CommandParser) -> None:
    """Where devices reach the hub, and how it proves itself to them."""
    command.add_argument(
        "--nats-port",
        type=parse_port,
        default=NATS_PORT,
        metavar="PORT",
        help=f"the port that devices send to; 0: any free one (default: {NATS_PORT})",
    )
    command.add_argument(
        "--listen",
        type=parse_address,
        default=LOOPBACK,
        metavar="ADDRESS",
        help=f"the address that devices send to; 0.0.0.0: every network (default: {LOOPBACK})",
    )
    command.add_argument(
        "--cert", type=Path, metavar="FILE", help="the certificate of that address, PEM"
    )
    command.add_argument("--key", type=Path, metavar="FILE", help="the certificate's key, PEM")


def _add_local_options(command: CommandParser) -> None:
    """Where people and programs of this machine reach its pages and its engine."""
    command.add_argument(
        "--port",
        type=parse_port,
        metavar="PORT",
        help=(
            "the port of the pages, with the extra `service`; 0: any free one "
            f"(default: {SERVICE_PORT})"
        ),
    )
    command.add_argument("--no-service", action="store_true", help="run without the pages")
    command.add_argument(
        "--engine-port",
        type=parse_port,
        default=0,
        metavar="PORT",
        help="the engine's port on this machine (default: any free one)",
    )


def parse_address(text: str) -> str:
    """Text as an IP address to listen at, for argparse."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        expected = "expected an address such as 127.0.0.1, 0.0.0.0 or ::"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}") from None


def _hub(options: argparse.Namespace) -> int:
    from power_fleet.hub import HubOptions, run

    told = HubOptions(
        options.data,
        options.nats_port,
        options.listen,
        options.cert,
        options.key,
        options.engine_port,
        _service_port(options),
        options.max_bytes,
        options.memory,
        options.metrics_file,
    )
    return run_until_signal(run(told, _say_ready))


def _service_port(options: argparse.Namespace) -> int | None:
    """The port of the pages; None without them."""
    if options.no_service and options.port is not None:
        raise WrongOptions("--port and --no-service: give one of them")
    if options.no_service:
        return None
    missing = [name for name in SERVICE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and options.port is not None:
        raise WrongOptions(f"--port: {not_installed(missing[0], 'hub,service')}")
    if missing:
        print_error("power-fleet: without pages: pip install '.[hub,service]' brings them")
        return None
    return SERVICE_PORT if options.port is None else int(options.port)


def _demo(options: argparse.Namespace) -> int:
    from power_fleet.demo import make_sites, run

    if options.remove:
        return _remove_demo(options)
    if options.yes:
        raise WrongOptions("--yes: give it together with --remove")
    to = nats_of(options)
    count = DEMO_DEVICES if options.devices is None else options.devices
    with tempfile.TemporaryDirectory(prefix="power-fleet-demo-") as directory:
        print_error(f"power-fleet: making a day of {counted(count, 'device')} in {directory}")
        sites = make_sites(Path(directory), count)
        then = "" if options.once else ", then what they measure from now on, until Ctrl-C"
        print_error(f"power-fleet: sending it{then}")
        try:
            code = run_until_signal(run(sites, to, options.once))
        finally:
            for site in sites:
                site.pm.close()
    stay = "1 made-up device stays" if count == 1 else f"{count} made-up devices stay"
    print_error(
        f"power-fleet: {stay} in the fleet: "
        "`power-fleet demo --remove` deletes what a demo has sent"
    )
    return code


def _remove_demo(options: argparse.Namespace) -> int:
    from power_fleet.demo_removal import await_stored, made_up_devices, remove
    from power_fleet.engine import Engine

    if options.devices is not None or options.once:
        raise WrongOptions("--remove: it deletes all made-up devices: leave out --devices, --once")
    source = nats_of(options)
    engine = Engine(engine_urls_of(options))
    asyncio.run(await_stored(source))
    found = made_up_devices(engine)
    if not found:
        print("no made-up devices: nothing was changed")
        return 0
    devices = f"{counted(len(found), 'made-up device')} ({found[0]} to {found[-1]})"
    confirm(f"Delete everything of {devices} from the fleet?", yes=options.yes)
    remove(engine, source, found)
    print(f"everything of {devices} is deleted")
    return 0


def _say_ready(addresses: Addresses) -> None:
    print(f"ready {addresses.nats} {addresses.service}".rstrip(), flush=True)
