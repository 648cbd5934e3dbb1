"""`python -m power_service` is the command `power-service`."""

import sys

from power_service.cli import main

sys.exit(main())
