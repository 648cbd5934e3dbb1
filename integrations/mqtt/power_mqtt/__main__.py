"""`python -m power_mqtt` is `power-mqtt`."""

import sys

from power_mqtt.cli import main

if __name__ == "__main__":
    sys.exit(main())
