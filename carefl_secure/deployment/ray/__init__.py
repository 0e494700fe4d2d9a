"""Clients as Ray actors on one machine."""
