"""An experimental sum under key-additive encryption."""
