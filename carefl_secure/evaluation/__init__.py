"""How good a model is, and the floors every score stands beside."""
