"""`python -m smearcount`."""

from smearcount.cli import app

app(prog_name="smearcount")
