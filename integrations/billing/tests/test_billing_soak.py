"""Months in which everything goes wrong: soak.py lives more of them, and longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import run_story


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_what_is_accepted_is_what_was_used_or_is_listed(seed: int, tmp_path: Path) -> None:
    """Alone, in odd months; in even ones beside another file, restores and a person who decides.

    The second half of eight months has a tariff.
    """
    done = run_story(seed, 120, tmp_path)
    assert done["report"] > 5
