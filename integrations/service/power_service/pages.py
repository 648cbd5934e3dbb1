"""Pages that the service makes itself: static, with an inline style sheet and nothing else."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from power_service.compress import FixedFile

_STYLE = """
:root {
  color-scheme: light dark; --soft: #5b6470; --line: #d5dae1; --box: #f4f6f8; --mark: #0b62c4;
}
@media (prefers-color-scheme: dark) {
  :root { --soft: #9aa5b1; --line: #39424d; --box: #1b2128; --mark: #6cb0ff; }
}
body {
  font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1.2rem;
}
h1 { font-size: 1.6rem; }
h2 {
  font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line);
  padding-bottom: .3rem;
}
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; overflow-wrap: anywhere; }
a { color: var(--mark); }
pre, code { font: 13px/1.5 ui-monospace, monospace; }
pre {
  background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow: auto;
}
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td {
  text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line);
}
th { color: var(--soft); font-weight: 600; }
td { overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); margin: .5rem 0; }
.soft { color: var(--soft); }
.method { display: inline-block; min-width: 5em; color: var(--mark); font-weight: 700; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CONTENT_SECURITY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(title: str, body: str) -> FixedFile:
    """A page; `body` is HTML."""
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _CONTENT_SECURITY}
    return FixedFile(text.encode(), "text/html; charset=utf-8", headers)


HOW_TO_BUILD = (
    "(cd integrations/client && npm ci && npm run build)",
    "(cd integrations/dashboard && npm ci && npm run build)",
    "power-service --dashboard integrations/dashboard/dist",
)


def without_dashboard() -> FixedFile:
    """The page at / if the dashboard was not built."""
    lines = "\n".join(map(escape, HOW_TO_BUILD))
    body = f"""<main>
<h1>power-service runs; its dashboard was not built</h1>
<p>Build it with Node 20.19 or later, from the top of the repository, and start the service again
with its options:</p>
<pre>{lines}</pre>
<p>Everything else works: <a href="/docs">the routes</a>, their
<a href="/openapi.json">contract</a>, and whether the service is <a href="/readyz">ready</a>.</p>
</main>"""
    return page("Power service", body)
