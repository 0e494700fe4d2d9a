"""Checks of a run folder that a report shows."""
