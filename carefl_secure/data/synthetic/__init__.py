"""A drawn corpus with known labels."""
