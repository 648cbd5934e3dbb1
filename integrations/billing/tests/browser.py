"""Pages in Chromium, without a window: as a PDF, and as its scripts leave them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

_COMMAND = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")
_LONGEST = 60  # seconds


def page_count(page: str, folder: Path) -> int:
    """How many sheets of paper a page takes."""
    pdf = folder / "page.pdf"
    _run(page, folder, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    return len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))


def title_of(page: str, folder: Path) -> str:
    """The title of a page after its scripts have run."""
    found = re.search("<title>(.*?)</title>", _run(page, folder, "--dump-dom"))
    assert found is not None
    return found[1]


def _run(page: str, folder: Path, *options: str) -> str:
    path = folder / "page.html"
    path.write_text(page)
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [*_COMMAND, profile, *options, path.as_uri()]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            out, err = run.communicate(timeout=_LONGEST)
        finally:  # its helpers outlive it by a moment; they are in its session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, err
    return out
