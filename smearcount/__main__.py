"""The program: `smearcount`, or `python -m smearcount`."""

import sys

from smearcount.cli import app
from smearcount.cli.common import muted, show_error

__all__ = ["main"]


def main() -> None:
    """Run the command; what the system refuses, such as a full disk, ends it with one clear line and exit code 1."""
    try:
        app(prog_name="smearcount")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        show_error(f"{place}{error.strerror or error}")
        muted()
        sys.exit(1)


if __name__ == "__main__":
    main()
