"""The command line: flags in, calls to the library, exit code out (0 good, 1 some pictures failed, 2 wrong usage)."""

from smearcount.cli import analysis, batch, models, naming, tools
from smearcount.cli.common import app

__all__ = ["app", "analysis", "batch", "models", "naming", "tools"]
