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
from power_service.settings import Refused, Settings, how_to_make_one, is_loopback
from power_service.storage import Lane, Storage
from power_service.tokens import EVERYBODY, Grant, Scope, Tickets, TokenFile

BEARER = HTTPBearer(
    scheme_name="bearer",
    auto_error=False,
    description="A token made by `power-service token new`, with scopes.",
)


_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="power-service"'}
SIGN_IN_SECONDS = 600.0  # for which a link to sign in is good
SIGN_IN_SCOPES = (Scope.READ.value, Scope.WRITE.value)  # of who signs in by one
_log = logging.getLogger("power_service")


class Gate:
    """Turns what a client presents into a grant, or into a problem."""

    storage: Storage  # set when it is open

    def __init__(self, settings: Settings, tokens: TokenFile) -> None:
        self.settings, self.tokens, self.tickets = settings, tokens, Tickets()
        self._sign_in_tickets = Tickets(SIGN_IN_SECONDS)
        self._buckets = Buckets(settings.rate, settings.burst)
        self._failures = Buckets(min(settings.rate, 10.0), 20)  # for each address
        self._trouble = ""  # why the tokens cannot be read, if they cannot

    async def refresh(self) -> None:
        """Read the tokens again if their file has changed; where it cannot be read they stay as they are."""
        try:
            await self.storage.call(Lane.POLL, self.tokens.refresh)
        except (Refused, OSError, Problem) as error:
            if str(error) != self._trouble:  # not every second
                _log.error("the tokens cannot be read: %s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    async def admit(self, token: str | None, scope: str | None, client: str) -> Grant:
        """The grant of a token that has that scope, if one is wanted, and requests left.

        Raises Problem 401, 403, 429.
        """
        if not self.settings.auth:
            self._spend(self._buckets, client)
            return EVERYBODY
        grant = self.tokens.find(token) if token else None
        if grant is None:
            self._spend(self._failures, client)
            if token:  # it may have been made just now
                await self.refresh()
                grant = self.tokens.find(token)
        if grant is None:
            raise self._unauthorized(token, client)
        self._spend(self._buckets, grant.id)
        return self.scoped(grant, scope)

    def admit_ticket(self, ticket: str, scope: str, client: str) -> Grant:
        """The same for a one-use ticket, which is used up."""
        grant = self.tickets.redeem(ticket)
        if grant is None or not self.tokens.knows(grant):
            self._spend(self._failures, client)
            raise Problem(
                Code.UNAUTHORIZED, "no such ticket, or it is used or too old: ask for another"
            )
        self._spend(self._buckets, grant.id)
        return self.scoped(grant, scope)

    def sign_in_ticket(self) -> str:
        """A ticket for `sign_in`, good once and for SIGN_IN_SECONDS while the service runs."""
        return self._sign_in_tickets.issue(Grant("", "link", SIGN_IN_SCOPES, None, "", ""))

    async def sign_in(self, ticket: str, client: str) -> tuple[str, Grant]:
        """Make a token for a ticket, which is used up; the token's text, and its grant.

        Raises Problem 401, 409, 429, 503.
        """
        if not self.settings.auth:
            self._spend(self._buckets, client)
            raise Problem(Code.CONFLICT, "this service asks for no token: go on without one")
        wanted = self._sign_in_tickets.redeem(ticket)
        if wanted is None:
            self._spend(self._failures, client)
            detail = (
                "this link was used before, is older than 10 minutes, or is of a service that has ended: "
                f"start the service with --open for another, or {self._hint(client)}"
            )
            raise Problem(Code.UNAUTHORIZED, detail, dict(_CHALLENGE))
        scopes = [Scope(scope) for scope in wanted.scopes]
        try:
            return await self.storage.call(Lane.READ, self.tokens.new, wanted.name, scopes)
        except (Refused, OSError, Problem) as error:
            self._sign_in_tickets.give_back(ticket, wanted)
            if isinstance(error, Problem):
                raise
            _log.error("the token of a link cannot be kept: %s", error)
            detail = "the service cannot write its file of tokens, as its log says; the link is good still"
            raise retry_later(Code.STORAGE_UNAVAILABLE, detail, 5) from error

    @staticmethod
    def scoped(grant: Grant, scope: str | None) -> Grant:
        """The grant, if it has that scope."""
        if scope is not None and not grant.has(scope):
            raise Problem(Code.FORBIDDEN_SCOPE, f"this token does not have the scope {scope!r}")
        return grant

    def _unauthorized(self, token: str | None, client: str) -> Problem:
        detail = "this token is not known, or was revoked" if token else "a bearer token is needed"
        if self._trouble:
            detail += "; the service cannot read its tokens now: its log says why"
        else:
            if not self.tokens.grants:
                detail = "there is no token yet"
            detail += f"; {self._hint(client)}"
        return Problem(Code.UNAUTHORIZED, detail, dict(_CHALLENGE))

    def token_command(self, client: str) -> str | None:
        """The command that makes a token for this service; None for who is not on its machine: it names a file."""
        if is_loopback(client) and not self.settings.behind_proxy:
            return how_to_make_one(self.settings)
        return None

    def _hint(self, client: str) -> str:
        """What to do; the path of a file only for who is on this machine."""
        command = self.token_command(client)
        if command is not None:
            return f"make one: {command}"
        return "make one by power-service token new, on the service's machine and for its --db"

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
    """The grant behind a request that has the wanted scope; a dependency of every route that needs one."""
    gate: Gate = request.app.state.gate
    client = request.client.host if request.client else ""
    scope = wanted.scopes[0] if wanted.scopes else None
    grant = await gate.admit(given.credentials if given else None, scope, client)
    request.state.grant = grant
    return grant


async def access_to_file(
    request: Request,
    wanted: SecurityScopes,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
) -> Grant:
    """The same for routes that a fleet does not have. Raises Problem 409 there, before a body is read."""
    grant = await access(request, wanted, given)
    storage: Storage = request.app.state.storage
    storage.check_has_file()
    return grant


Reader = Annotated[Grant, Security(access, scopes=["read"])]
Writer = Annotated[Grant, Security(access_to_file, scopes=["write"])]
Admin = Annotated[Grant, Security(access_to_file, scopes=["admin"])]
Anybody = Annotated[Grant, Security(access, scopes=[])]  # with a token that is known


def forbidden_device() -> Problem:
    """The same for a device of somebody else and for one that does not exist, so that nobody learns which."""
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
