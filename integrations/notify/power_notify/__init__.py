"""Tells people what happens in a power_manager file: by mail, ntfy, Telegram and whatever else Apprise knows.

news: what has happened since the last look. store: what this package keeps in the file. texts: from news to words.
quiet: hours in which people sleep. ways: to people, by Apprise. notifier: the loop over all of it. cli: the command
line.
"""

from __future__ import annotations

__version__ = "1.0.0"
