"""Scores of a run: on held-out records, by generated text, and zero-shot on another corpus."""
