"""power-mqtt with pauses and limits that suit a test, on a machine however slow.

    python quick.py COMMAND ...    # as python -m power_mqtt COMMAND ...

What a test waits for comes sooner, and what would be cut off after some seconds is not: the pauses
and limits themselves are tested with clocks of the tests. Where the hard end is what is tested,
POWER_TEST_END_SECONDS says after how many seconds it comes.
"""

from __future__ import annotations

import os
import sys

from power_mqtt import notices

_HOUR = 3600.0

if __name__ == "__main__":
    # First, because others take it from there when they are imported.
    notices.END_SECONDS = float(os.environ.get("POWER_TEST_END_SECONDS", _HOUR))

    from power_mqtt import cli, connection, events, suspicion

    connection._FIRST_DELAY = 0.1  # between two attempts to connect
    events.LOCKED_SECONDS = 1.0  # between two attempts to move the cursor in a locked file
    suspicion.SHORT_SECONDS = _HOUR  # a connection that ends sooner may have been ended on purpose
    sys.exit(cli.main())
