"""Corpora: an image, its person, its labels, its attributes, and how clients share them out."""
