"""What the parties agree on before a run."""
