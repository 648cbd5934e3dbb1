"""The service itself: signing in, the token, backup, health, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from power_service import backup, models, shapes
from power_service.auth import (
    Admin,
    Anybody,
    Gate,
    Reader,
    forbidden_device,
)
from power_service.billing import billing_metrics
from power_service.bodies import (
    json_response,
    read_object,
)
from power_service.metrics import Metrics
from power_service.problems import Code, Problem, retry_later
from power_service.routes.parameters import body_of, client_of
from power_service.settings import Settings
from power_service.storage import Lane, storage_of

router = APIRouter(prefix="/v1")
plain = APIRouter()

# --- Signing in


@router.get(
    "/sign-in", operation_id="getSignIn", response_model=models.SignInNeeds, tags=["service"]
)
async def get_sign_in(request: Request) -> Response:
    """Whether this service needs a token; pages ask this first. No token is needed here."""
    gate: Gate = request.app.state.gate
    command = gate.token_command(client_of(request)) if gate.settings.auth else None
    return json_response(models.SIGN_IN_NEEDS, models.SignInNeeds(gate.settings.auth, command))


@router.post(
    "/sign-in",
    operation_id="signIn",
    response_model=models.SignedIn,
    tags=["service"],
    openapi_extra=body_of(shapes.SIGN_IN),
)
async def sign_in(request: Request) -> Response:
    """Exchange the ticket of a one-time link, as `power-service --open` prints it, for a token."""
    gate: Gate = request.app.state.gate
    ticket = (await read_object(request, shapes.SIGN_IN))["ticket"]
    if not isinstance(ticket, str) or not 0 < len(ticket) <= shapes.MAX_ID:
        raise Problem(Code.INVALID_VALUE, "ticket: expected the text after /#/sign-in/ in a link")
    token, grant = await gate.sign_in(ticket, client_of(request))
    return json_response(
        models.SIGNED_IN, models.SignedIn(token, grant.name, models.scopes_of(grant))
    )


# --- The service itself


@router.get("/me", operation_id="getMe", response_model=models.Me, tags=["service"])
async def get_me(request: Request, grant: Anybody) -> Response:
    """The token's name and what it may do; for a token with any scope."""
    settings: Settings = request.app.state.settings
    scopes = models.scopes_of(grant)
    database = str(settings.db.absolute()) if grant.devices is None else None
    if settings.is_fleet:
        scopes = [scope for scope in scopes if scope == "read"]
        database = None
    me = models.Me(
        name=grant.name,
        scopes=scopes,
        devices=None if grant.devices is None else list(grant.devices),
        database=database,
        source="fleet" if settings.is_fleet else "file",
    )
    return json_response(models.ME, me)


class _BackupResponse(StreamingResponse):
    """A copy of the database; its place is given back also when the client disconnects."""

    def __init__(self, sending: backup.Sending) -> None:
        headers = {
            "Content-Length": str(sending.size),
            "Content-Disposition": 'attachment; filename="power_manager.db"',
        }
        super().__init__(sending.chunks(), headers=headers, media_type=backup.MEDIA_TYPE)
        self._sending = sending

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._sending.end()


@router.get(
    "/backup",
    operation_id="getBackup",
    tags=["service"],
)
async def get_backup(request: Request, grant: Admin) -> Response:
    """A consistent copy of the database, made while others read and write.

    `power-manager restore` puts it back. Not for tokens bound to devices. One backup runs at a
    time; a second request gets 503.
    """
    if grant.devices is not None:
        raise forbidden_device()
    storage = storage_of(request)
    place: backup.OneAtATime = request.app.state.backups
    if not place.take():
        raise retry_later(Code.OVERLOADED, "another backup is under way", 10)
    try:
        file = await storage.call(Lane.BACKUP, backup.copy, storage.pm)
    except BaseException:
        place.give_back()
        raise
    return _BackupResponse(backup.Sending(file, place))


# HEAD too: programs that watch whether a service is up ask so.
@plain.head("/healthz", include_in_schema=False)
@plain.get("/healthz", operation_id="getHealth", response_model=models.Health, tags=["service"])
async def get_health() -> Response:
    """Whether the process answers."""
    return json_response(models.HEALTH, models.Health("ok"))


@plain.head("/readyz", include_in_schema=False)
@plain.get("/readyz", operation_id="getReadiness", response_model=models.Health, tags=["service"])
async def get_readiness(request: Request) -> Response:
    """Whether the database can be read and the stream follows it."""
    if not request.app.state.hub.ready():
        raise retry_later(Code.NOT_READY, "the database cannot be read now", 1)
    return json_response(models.HEALTH, models.Health("ready"))


@plain.get("/metrics", operation_id="getMetrics", tags=["service"])
async def get_metrics(request: Request, grant: Reader) -> Response:
    """The metrics for Prometheus; not for tokens bound to devices."""
    if grant.devices is not None:
        raise forbidden_device()
    metrics: Metrics = request.app.state.metrics
    storage = storage_of(request)
    text = await storage.call(Lane.READ, metrics.text, storage.source)
    text += await billing_metrics(request.app, storage)
    if storage.is_fleet:
        text += await storage.call(Lane.READ, storage.fleet.metrics_text)
    return Response(text, media_type=metrics.content_type)
