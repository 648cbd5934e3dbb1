"""`power-mqtt` with clocks that run faster: python scaled.py SPEED REAL_START START ARGUMENTS.

SPEED: seconds a second. START is what time it is at REAL_START; epoch seconds. The connection to
the broker keeps to real time: a loopback socket does not become faster.
"""

from __future__ import annotations

import sys
import time

import paho.mqtt.client  # noqa: F401 - first: it keeps the clock that it finds


def main() -> int:
    """Run power-mqtt with the clocks of that world."""
    speed, real_start, start = map(float, sys.argv[1:4])
    real_time, real_monotonic, real_clock = time.time, time.monotonic, time.clock_gettime
    time.time = lambda: start + (real_time() - real_start) * speed
    time.monotonic = lambda: real_monotonic() * speed
    time.clock_gettime = lambda clock: real_clock(clock) * speed
    from power_mqtt import cli, publisher  # now: they keep these clocks

    time.monotonic = real_monotonic
    # What waits for the broker waits as long as elsewhere.
    publisher.HEAR_SECONDS *= speed
    publisher.ACKNOWLEDGE_SECONDS *= speed
    return cli.main(sys.argv[4:])


if __name__ == "__main__":
    sys.exit(main())
