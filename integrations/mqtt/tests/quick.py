"""power-mqtt with shorter pauses, so that a test that waits for them waits less.

    python quick.py COMMAND ...    # as python -m power_mqtt COMMAND ...

The pauses themselves are tested with clocks of the tests.
"""

from __future__ import annotations

import sys

from power_mqtt import cli, connection, events

if __name__ == "__main__":
    connection._FIRST_DELAY = 0.1  # between two attempts to connect
    events.LOCKED_SECONDS = 1.0  # between two attempts to move the cursor in a locked file
    sys.exit(cli.main())
