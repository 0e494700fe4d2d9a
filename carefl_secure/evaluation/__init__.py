"""How good a model is, and the baselines that every score is compared with."""
