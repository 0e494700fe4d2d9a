"""The server: strategy, rounds and optimizers."""
