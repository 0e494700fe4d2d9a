"""Runs that are recorded or run again, so that an attack has something to attack."""
