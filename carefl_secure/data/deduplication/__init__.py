"""Equal and nearly equal images."""
