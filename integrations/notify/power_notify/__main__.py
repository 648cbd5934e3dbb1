"""`python3 -m power_notify` is the command `power-notify`."""

from __future__ import annotations

import sys

from power_notify.cli import main

if __name__ == "__main__":
    sys.exit(main())
