"""EMOTIC, from its annotations, archive or tables."""
