"""The attacks: one file an attack, and what several of them share."""
