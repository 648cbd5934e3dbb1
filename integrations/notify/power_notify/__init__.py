"""Tells people what happens in a power_manager file, by mail, ntfy and whatever Apprise has.

errors    the root of the errors
news      what has happened since the last look
store     what this package keeps in the file
texts     from news to messages
quiet     quiet hours
ways      ways to people, by Apprise
notifier  the loop over all of it
cli       the command line
"""

from power_manager import __version__

__all__ = ["__version__"]
