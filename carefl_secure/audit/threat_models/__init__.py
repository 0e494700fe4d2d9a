"""Threat models: their schema, how they are loaded, their page."""
