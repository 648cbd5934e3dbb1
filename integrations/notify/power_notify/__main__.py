"""`python -m power_notify` is `power-notify`."""

import sys

from power_notify.cli import main

sys.exit(main())
