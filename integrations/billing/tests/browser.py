"""Pages in Chromium, without a window: as a PDF, and as its scripts leave them."""

from __future__ import annotations

import re
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
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST)
    return run.stdout
