"""Flower's processes and wire in a deployment."""
