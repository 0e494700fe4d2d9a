"""The words a person types; no logic, only what is asked, shown and answered."""

from carefl_secure.cli.app import app, main

__all__ = ["app", "main"]
