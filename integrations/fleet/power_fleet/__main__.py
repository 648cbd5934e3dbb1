"""`python -m power_fleet` is `power-fleet`."""

import sys

from power_fleet.cli import main

if __name__ == "__main__":
    sys.exit(main())
