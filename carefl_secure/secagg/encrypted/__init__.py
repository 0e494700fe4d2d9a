"""Sums under homomorphic encryption with one key holder."""
