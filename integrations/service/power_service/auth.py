"""Who may do what on which device."""

from __future__ import annotations

import logging
import math
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from power_manager import InvalidValue, NotFound
from power_service.limits import Buckets
from power_service.problems import Code, Problem, retry_later
from power_service.queries import check_query
from power_service.settings import Refused, Settings, how_to_make_one, is_loopback
from power_service.storage import Lane, Storage, storage_of
from power_service.tokens import EVERYBODY, Grant, Scope, Tickets, TokenFile

BEARER = HTTPBearer(
    scheme_name="bearer",
    auto_error=False,
    description="A token made by `power-service token new`, with scopes.",
)


_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="power-service"'}
SIGN_IN_SECONDS = 600.0  # for which a sign-in link is valid
SIGN_IN_SCOPES = (Scope.READ.value, Scope.WRITE.value)  # of the token that a link gives
_log = logging.getLogger("power_service")


class Gate:
    """Turns a client's token or ticket into a grant, or raises a problem."""

    storage: Storage  # set when it is open

    def __init__(self, settings: Settings, tokens: TokenFile) -> None:
        self.settings = settings
        self.tokens = tokens
        self.tickets = Tickets()
        self._sign_in_tickets = Tickets(SIGN_IN_SECONDS)
        self._buckets = Buckets(settings.rate, settings.burst)
        self._failures = Buckets(min(settings.rate, 10.0), 20)  # for each address
        self._trouble = ""  # why the tokens cannot be read; "" while they can
        self._had_some = bool(tokens.grants)

    async def refresh(self) -> None:
        """Read the tokens again if their file has changed; keep the old ones if that fails."""
        try:
            await self.storage.call(Lane.POLL, self.tokens.refresh)
        except (Refused, OSError, Problem) as error:
            if str(error) != self._trouble:  # once, not every second
                _log.error("the tokens cannot be read: %s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""
            had_some = self._had_some  # not from before the call: two may be under way
            self._had_some = bool(self.tokens.grants)
            if had_some and not self._had_some:
                _log.warning(
                    "%s has no token any more, so every request is refused; put it back, or make "
                    "one: %s",
                    self.tokens.path,
                    how_to_make_one(self.settings),
                )

    async def admit(self, token: str | None, scope: str | None, client: str) -> Grant:
        """The grant of a token, which has the scope, if one is given, and requests left.

        Raises Problem 401, 403, 429.
        """
        if not self.settings.auth:
            self._spend(self._buckets, client)
            return EVERYBODY
        grant = self.tokens.find(token) if token else None
        if grant is None:
            self._spend(self._failures, client)
            if token:  # it may be new
                await self.refresh()
                grant = self.tokens.find(token)
        if grant is None:
            raise self._unauthorized(token, client)
        self._spend(self._buckets, grant.id)
        return self.scoped(grant, scope)

    def admit_ticket(self, ticket: str, scope: str, client: str) -> Grant:
        """The grant of a one-use ticket, which is used up. Raises Problem 401, 403, 429."""
        grant = self.tickets.redeem(ticket)
        if grant is None or not self.tokens.knows(grant):
            self._spend(self._failures, client)
            raise Problem(
                Code.UNAUTHORIZED, "this ticket is unknown, used or too old: ask for another"
            )
        self._spend(self._buckets, grant.id)
        return self.scoped(grant, scope)

    def sign_in_ticket(self) -> str:
        """A ticket for `sign_in`, valid once and for SIGN_IN_SECONDS, while the service runs."""
        return self._sign_in_tickets.issue(Grant("", "link", SIGN_IN_SCOPES, None, "", ""))

    async def sign_in(self, ticket: str, client: str) -> tuple[str, Grant]:
        """Make a token for a ticket, which is used up; return the token's text and its grant.

        Raises Problem 401, 409, 429, 503.
        """
        if not self.settings.auth:
            self._spend(self._buckets, client)
            raise Problem(Code.CONFLICT, "this service needs no token: go on without one")
        wanted = self._sign_in_tickets.redeem(ticket)
        if wanted is None:
            self._spend(self._failures, client)
            detail = (
                "this link was used before, is older than 10 minutes, or belongs to a service that "
                f"has ended: start the service with --open for another, or {self._hint(client)}"
            )
            raise Problem(Code.UNAUTHORIZED, detail, dict(_CHALLENGE))
        scopes = [Scope(scope) for scope in wanted.scopes]
        try:
            return await self.storage.call(Lane.READ, self.tokens.new, wanted.name, scopes)
        except (Refused, OSError, Problem) as error:
            self._sign_in_tickets.give_back(ticket, wanted)
            if isinstance(error, Problem):
                raise
            _log.error("the token of a sign-in link cannot be stored: %s", error)
            detail = "the service cannot write its token file, see its log; the link is still valid"
            raise retry_later(Code.STORAGE_UNAVAILABLE, detail, 5) from error

    @staticmethod
    def scoped(grant: Grant, scope: str | None) -> Grant:
        """The grant, if it has that scope. Raises Problem 403."""
        if scope is not None and not grant.has(scope):
            raise Problem(Code.FORBIDDEN_SCOPE, f"this token does not have the scope {scope!r}")
        return grant

    def _unauthorized(self, token: str | None, client: str) -> Problem:
        detail = "this token is unknown or revoked" if token else "a bearer token is needed"
        if self._trouble:
            detail += "; the service cannot read its tokens now, see its log"
        else:
            if not self.tokens.grants:
                detail = "there is no token yet"
            detail += f"; {self._hint(client)}"
        return Problem(Code.UNAUTHORIZED, detail, dict(_CHALLENGE))

    def token_command(self, client: str) -> str | None:
        """The command that makes a token; None for other machines, as it names the file."""
        if is_loopback(client) and not self.settings.behind_proxy:
            return how_to_make_one(self.settings)
        return None

    def _hint(self, client: str) -> str:
        """How to make a token; with the file's path for clients on this machine only."""
        command = self.token_command(client)
        if command is not None:
            return f"make one: {command}"
        return "make one on the service's machine: power-service token new, with its --db"

    @staticmethod
    def _spend(buckets: Buckets, key: str) -> None:
        wait = buckets.take(key)
        if wait:
            raise retry_later(
                Code.RATE_LIMITED, f"too many requests: wait {wait:.2f} s", math.ceil(wait)
            )


async def access(
    request: Request,
    wanted: SecurityScopes,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
) -> Grant:
    """The grant of a request, with the wanted scope: the dependency of routes that need a token.

    Also raises Problem 422 for a query that the route does not know.
    """
    gate: Gate = request.app.state.gate
    client = request.client.host if request.client else ""
    scope = wanted.scopes[0] if wanted.scopes else None
    grant = await gate.admit(given.credentials if given else None, scope, client)
    request.state.grant = grant
    operation = getattr(request.scope.get("route"), "operation_id", None)
    if operation in request.app.state.queries:
        check_query(request.query_params, request.app.state.queries[operation])
    return grant


async def access_to_file(
    request: Request,
    wanted: SecurityScopes,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
) -> Grant:
    """As `access`, for routes that need a file; for a fleet, Problem 409 before a body is read."""
    grant = await access(request, wanted, given)
    storage_of(request).check_has_file()
    return grant


Reader = Annotated[Grant, Security(access, scopes=["read"])]
Writer = Annotated[Grant, Security(access_to_file, scopes=["write"])]
Admin = Annotated[Grant, Security(access_to_file, scopes=["admin"])]
Anybody = Annotated[Grant, Security(access, scopes=[])]  # with a valid token of any scope


def forbidden_device() -> Problem:
    """The same for another's device and for one that does not exist, so that none learns which."""
    return Problem(Code.FORBIDDEN_DEVICE, "this token is bound to other devices")


def check_devices(grant: Grant, *device_ids: str) -> None:
    """Raise Problem 403 unless the grant covers every device."""
    if not all(map(grant.covers, device_ids)):
        raise forbidden_device()


async def check_meter(storage: Storage, grant: Grant, meter_id: str) -> None:
    """Raise Problem 403 unless the grant covers the meter's device."""
    if grant.devices is None:
        return
    try:
        meter = await storage.call(Lane.READ, storage.source.get_meter, meter_id)
    except (NotFound, InvalidValue) as error:
        raise forbidden_device() from error
    check_devices(grant, meter.device_id)
