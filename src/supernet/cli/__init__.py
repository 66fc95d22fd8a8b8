"""The command line: `supernet`, and a command a file."""

from supernet.cli.main import main

__all__ = ["main"]
