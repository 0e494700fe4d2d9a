"""Sums under pairwise masks that cancel."""
