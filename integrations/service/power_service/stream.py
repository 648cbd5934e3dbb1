"""The WebSocket /v1/stream: who may connect, where the client resumes, and the subprotocol."""

from __future__ import annotations

import logging

from starlette.websockets import WebSocket

from power_service.auth import Gate, check_devices
from power_service.clients import Client, end
from power_service.hub import Begin, Hub
from power_service.problems import Code, Problem
from power_service.queries import check_query
from power_service.shapes import MAX_FILE_ID
from power_service.tokens import Grant, Scope

SUBPROTOCOL = "power.v1"
_MAX_SEQUENCE = 2**63 - 1
_PARAMETERS = {"device_id": True, "after": False, "file_id": False, "ticket": False}
_log = logging.getLogger("power_service.stream")


async def _admit(ws: WebSocket, gate: Gate) -> Grant:
    """The grant behind a connection: a token as subprotocol or header, or a one-use ticket."""
    client = ws.client.host if ws.client else ""
    ticket = ws.query_params.get("ticket")
    if ticket is not None:
        return gate.admit_ticket(ticket, Scope.READ.value, client)
    offered = [text for text in ws.scope.get("subprotocols", []) if text.startswith("token.")]
    token = offered[0].removeprefix("token.") if offered else None
    scheme, _, credentials = ws.headers.get("authorization", "").partition(" ")
    if token is None and scheme.lower() == "bearer":
        token = credentials.strip()
    return await gate.admit(token, Scope.READ.value, client)


def _begin(ws: WebSocket) -> Begin:
    """Where the client begins. Raises Problem 422."""
    check_query(ws.query_params, _PARAMETERS)
    text = ws.query_params.get("after")
    file_id = ws.query_params.get("file_id")
    if file_id is not None and not 0 < len(file_id) <= MAX_FILE_ID:
        raise Problem(Code.INVALID_VALUE, "file_id: expected the file_id of an earlier hello")
    if text is None:
        return Begin(None, file_id)
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _MAX_SEQUENCE):
        raise Problem(Code.INVALID_VALUE, "after: expected a sequence number")
    return Begin(int(text), file_id)


def _subprotocol(ws: WebSocket) -> str | None:
    """The one to answer: a browser insists on one that it offered; a token is not sent back."""
    offered: list[str] = ws.scope.get("subprotocols", [])
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    return offered[0] if offered else None


async def stream(ws: WebSocket) -> None:
    """WS /v1/stream?device_id=&after=&file_id=&ticket=. A refusal closes with 4000 + its status."""
    state = ws.app.state
    hub: Hub = state.hub
    device_ids = ws.query_params.getlist("device_id")
    try:
        grant = await _admit(ws, state.gate)
        begin = _begin(ws)
        check_devices(grant, *device_ids)
    except Problem as problem:
        # Accepted first: a browser tells its page nothing of a refused handshake, and the page
        # would try again forever.
        await ws.accept(subprotocol=_subprotocol(ws))
        await end(ws, 4000 + problem.status, problem.code.value)
        return
    await ws.accept(subprotocol=_subprotocol(ws))
    _log.info("stream begins token=%s", grant.id)
    client = Client(ws, grant, frozenset(device_ids) or None, state.settings.queue)
    await hub.serve(client, begin)
    _log.info("stream ends token=%s", grant.id)
