"""`python -m power_billing` is `power-billing`."""

import sys

from power_billing.cli import main

if __name__ == "__main__":
    sys.exit(main())
