"""The built dashboard: read once and served from memory, so that no request names a file."""

from __future__ import annotations

import logging
import mimetypes
from pathlib import Path

from fastapi import FastAPI
from starlette.routing import Route

from power_service.compress import FixedFile
from power_service.pages import without_dashboard
from power_service.settings import Refused

_BESIDE = ("dashboard", "../../dashboard/dist")  # of the installed package; of the repository
_log = logging.getLogger("power_service")
_MAX_BYTES = 32 * 1024 * 1024
# Stricter than for other answers: the page needs nothing inline and nothing from elsewhere.
_CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)


def find(told: Path | None) -> Path | None:
    """The directory of the built dashboard; None if there is none."""
    candidates = [told] if told else [Path(__file__).parent / place for place in _BESIDE]
    return next((path for path in candidates if (path / "index.html").is_file()), None)


def add_dashboard(app: FastAPI, told: Path | None) -> None:
    """Serve the dashboard's files, and its index.html as /; without it, a page that says why.

    Raises Refused if the directory that was given has no dashboard.
    """
    root = find(told)
    if root is None:
        if told:
            raise Refused(f"--dashboard {told}: expected a directory with index.html in it")
        _log.warning("the dashboard was not built: the page at / says how to build it")
        answer = without_dashboard().answer
        app.router.routes.append(Route("/", answer, methods=["GET"], include_in_schema=False))
        return
    total = 0
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        content = path.read_bytes()
        total += len(content)
        if total > _MAX_BYTES:
            raise Refused(f"{root}: more than {_MAX_BYTES} bytes: is this the built dashboard?")
        name = path.relative_to(root).as_posix()
        app.router.routes.append(_route("/" if name == "index.html" else f"/{name}", name, content))


def _route(url: str, name: str, content: bytes) -> Route:
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    # Built files have a hash in their names and never change; index.html names the present files.
    lasting = "public, max-age=31536000, immutable" if name.startswith("assets/") else "no-cache"
    headers = {"Cache-Control": lasting, "Content-Security-Policy": _CONTENT_SECURITY}
    file = FixedFile(content, media_type, headers)
    return Route(url, file.answer, methods=["GET"], include_in_schema=False)
