"""Attacks on a finished run, each on what its adversary would see, and what they prove."""
