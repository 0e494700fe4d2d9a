"""Runs through a SuperLink: on this machine, or among sites."""
