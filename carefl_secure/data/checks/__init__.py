"""Checks of a corpus and their report."""
