"""`python3 -m power_service` is the command `power-service`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from power_manager import PowerManagerError, run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or say which extra to install; return the exit code."""

    def program() -> int:
        from power_service import cli  # which imports packages of the extra

        return cli.run(argv)

    return run_program(program, "power-service", (PowerManagerError,), extra="service")


if __name__ == "__main__":
    sys.exit(main())
