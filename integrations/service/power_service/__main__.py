"""`python3 -m power_service` is the command `power-service`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from power_manager import PowerManagerError, print_error, run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, or say which extra to install; return the exit code."""

    def program() -> int:
        try:
            from power_service import cli
        except ModuleNotFoundError as error:
            print_error(f"power-service: {error.name} is not installed: pip install '.[service]'")
            return 1
        return cli.run(argv)

    return run_program(program, "power-service", (PowerManagerError,))


if __name__ == "__main__":
    sys.exit(main())
