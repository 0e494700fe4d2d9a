"""Sums opened by a committee of clients that hold shares of one-time keys."""
