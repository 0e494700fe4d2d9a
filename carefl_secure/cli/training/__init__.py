"""Commands that train, evaluate, caption and run experiments."""
