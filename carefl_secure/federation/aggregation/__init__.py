"""One file an aggregation protocol, and their registry."""
