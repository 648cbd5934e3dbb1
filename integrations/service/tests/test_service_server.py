"""What the server uses of uvicorn: if a release renames it, a test here says what breaks."""

from __future__ import annotations

import asyncio
import inspect
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hold_port import held_port
from power_service import server
from power_service.listener import CannotListen, Listener, bind
from power_service.settings import Settings
from service_harness import SOON
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

HTTP_BASE = server.HttpProtocol.__mro__[1]


@pytest.mark.parametrize(
    ("base", "derived"),
    [
        (HTTP_BASE, server.HttpProtocol),
        (WebSocketsSansIOProtocol, server.StreamProtocol),
        (uvicorn.Server, server.Server),
    ],
)
def test_what_is_overridden_is_there(base: type, derived: type) -> None:
    """With as many parameters: a method of another name would never be called."""
    added = {"close", "exit_code", "settings"}  # of the service's own
    for name, function in vars(derived).items():
        if name.startswith("_") or name in added:
            continue
        assert hasattr(base, name), f"{base.__name__} has no {name}"
        theirs, ours = (inspect.signature(f).parameters for f in (getattr(base, name), function))
        fits = len(theirs) == len(ours) or any(
            p.kind is inspect.Parameter.VAR_POSITIONAL for p in ours.values()
        )
        assert fits, f"{base.__name__}.{name} has other parameters"


@pytest.mark.parametrize(
    ("base", "attributes"),
    [
        (HTTP_BASE, ["connections", "cycle", "loop", "transport"]),
        (
            WebSocketsSansIOProtocol,
            [
                "close_sent",
                "close_timer",
                "conn",
                "disconnected",
                "loop",
                "read_paused",
                "transport",
            ],
        ),
    ],
)
def test_what_is_read_is_there(base: type, attributes: list[str]) -> None:
    """The state of a connection, by uvicorn's names."""

    async def made() -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError

        config = uvicorn.Config(app, ws="none", log_config=None)
        config.load()
        return base(config=config, server_state=ServerState(), app_state={})

    protocol = asyncio.run(made())
    for name in attributes:
        assert hasattr(protocol, name), f"{base.__name__} has no {name}"


def test_a_server_has_what_the_listener_needs() -> None:
    """The set of connections, and the servers that are closed at the end."""
    assert isinstance(ServerState().connections, set)
    source = inspect.getsource(uvicorn.Server.shutdown)
    assert "for server in self.servers:" in source
    assert "server.close()" in source


def test_the_second_part_of_an_answer_waits_for_nothing(tmp_path: Path) -> None:
    """Every connection that is taken in sends at once what it has to send."""

    async def taken_in() -> int:
        begun: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                begun.set_result(transport)

        settings = Settings(db=tmp_path / "p.db")
        bound = bind("127.0.0.1", 0)
        listener = Listener(bound, Protocol, set(), settings, None)
        with socket.create_connection(bound[0].getsockname()):
            transport = await asyncio.wait_for(begun, SOON)
            connection = transport.get_extra_info("socket")
            is_set: int = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            transport.close()
        listener.close()
        await listener.wait_closed()
        return is_set

    assert asyncio.run(taken_in()) != 0


class TestBind:
    """Listening sockets at every address that a host has here."""

    def test_a_name_with_an_address_that_is_not_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As ::1 of localhost, without IPv6: the others will do."""
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        (listening,) = bind("both", 0)
        assert listening.getsockname()[0] == "127.0.0.1"
        listening.close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
        with pytest.raises(CannotListen, match="elsewhere:0: this machine does not have this"):
            bind("elsewhere", 0)

    def test_an_address_in_use_is_an_error_and_leaves_nothing_open(self) -> None:
        """Which names the address."""
        with held_port() as held:
            address = held.getsockname()
            named = rf"^cannot listen at 127.0.0.1:{address[1]}: another program has this port"
            with socket.create_server(address), pytest.raises(CannotListen, match=named):
                bind(*address)
            for listening in bind(*address):
                listening.close()

    def test_an_unknown_host_is_named_with_what_would_do(self) -> None:
        """The resolver's reason, and the option."""
        with pytest.raises(CannotListen, match=r"no\.invalid:80: .*: name an address .* --host"):
            bind("no.invalid", 80)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/"),
        ("0.0.0.0", "http://127.0.0.1:80/"),
        ("::", "http://[::1]:80/"),
        ("::1", "http://[::1]:80/"),
        ("localhost", "http://localhost:80/"),
    ],
)
def test_the_address_for_a_browser(host: str, expected: str) -> None:
    """One that can be opened on this machine."""
    assert server._address("http", host, 80) == expected
