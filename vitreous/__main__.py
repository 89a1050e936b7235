"""`python -m vitreous`."""

from vitreous.cli import entry

entry()
