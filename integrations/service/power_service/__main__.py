"""`python -m power_service` is the command `power-service`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from power_manager import print_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code. It says what to install where the extra is not."""
    try:
        from power_service import cli
    except ModuleNotFoundError as error:
        print_error(f"power-service: {error.name} is not installed: pip install '.[service]'")
        return 1
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
