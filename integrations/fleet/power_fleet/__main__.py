"""`python -m power_fleet` is `power-fleet`."""

import sys

from power_fleet.cli import main

sys.exit(main())
