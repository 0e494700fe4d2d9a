"""The command line: options, output and exit codes; no other logic."""

from carefl_secure.cli.app import app, main

__all__ = ["app", "main"]
